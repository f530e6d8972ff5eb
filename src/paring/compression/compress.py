"""`compress`: the smallest file whose decoded network keeps its loss within a bound."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import nn

from paring.compression.calibrated_rounding import CalibratedRounding
from paring.compression.objective import Objective
from paring.compression.small_tensors import shrink_small
from paring.compression.task import Bound, Compressed, Compressor, Task
from paring.compression.tensors import float_bytes
from paring.compression.through_file import through_file
from paring.compression.training import Training
from paring.core import Watch, plain_net, warn
from paring.core.default_loss import Loss, again_and_again, cross_entropy
from paring.core.quantised import in_floats
from paring.core.validate import contains
from paring.removal import compact


def compress(
    net: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    max_loss_increase: float,
    compressor: Compressor = CalibratedRounding(),  # noqa: B008  # a frozen value
    validate: Iterable[Any] | None = None,
    training: Training | None = None,
    error: Loss | None = None,
    max_error_increase: float = 0.0,
    example: Any = None,
    small_bits: int | None = None,
    fuse_norms: bool = False,
    watch: Watch | None = None,
) -> Compressed:
    """The smallest network the compressor finds whose decoded file keeps the bound.

    Args:
        net: a trained network; left as it was.
        batches: training data, gone through several times: a DataLoader, a list. Compressors calibrate or train on it.
        loss: of a network on a batch, a scalar, the mean over its examples; by default cross-entropy for pairs of an input and
            integer labels, and `net(**batch).loss` for mappings. `own_outputs(net)` needs no labels.
        max_loss_increase: how much the loss may exceed the network's own; 0 for not at all, `math.inf` for any.
        compressor: how to compress, with its settings.
        validate: held-out batches on which the loss is kept, the `batches` where there are none; held in memory. Never the test set.
        training: how compressors that learn train, with data of their own; by default on `batches` with the loss.
        error: a second measure that is kept too, of a network on a batch, such as the share of wrong answers.
        max_error_increase: how much the error may exceed the network's own.
        example: an example input (as `attach` takes it), for compressors that remove units and for
            `fuse_norms`.
        small_bits: bits of biases and norms; 0 keeps them in half precision, None gives them, in the end, as few as the bound
            allows (where there is a bound).
        fuse_norms: first fuse BatchNorms into the layers in front of them (and remove what computes nothing), exactly, so
            that they cost nothing; learning compressors then train without them.
        watch: called with every candidate (`Progress.step`) and its decoded network (`Progress.net`), for progress and curves.

    Returns:
        The smallest network within the bound, and all candidates; where none kept it the network as it was given, with the
        reason and a `ParingWarning`. Interrupting (Ctrl-C) returns the best so far.

    Raises:
        ValueError: the network's loss is not finite, batches that are empty or run out, or a setting that makes no sense.
    """
    if small_bits is not None and small_bits != 0 and not 2 <= small_bits <= 11:
        raise ValueError(f"compress(small_bits={small_bits}): from 2 to 11 bits, 0 for half precision, None to search")
    net = in_floats(plain_net(net, "compress"), "compress")
    _check_numbers(compressor)
    if compressor.trains:
        _check_trainable(net)
    base = copy.deepcopy(net).eval()
    loss = loss or cross_entropy
    kept, training = _data(batches, loss, validate, training)
    objective = Objective(loss, kept)
    wrongs = None if error is None else Objective(error, kept)
    bound, before, wrong = _bound(base, objective, max_loss_increase, wrongs, max_error_increase)
    size = float_bytes(base)
    if fuse_norms:
        if example is None:
            raise ValueError("compress(fuse_norms=True) captures the network: give example=x[:2], an example input")
        base, _ = compact(base, example, fuse_norms=True)
    task = Task(base, bound, training, example, small_bits or 0, watch)
    interrupted = False
    try:
        compressor.run(task)
        if small_bits is None and (math.isfinite(bound.loss) or math.isfinite(bound.largest_error)):
            shrink_small(task)
    except KeyboardInterrupt:
        interrupted = True
    as_it_is, length = through_file(copy.deepcopy(net).eval())
    if task.best is None or task.best[1].bytes > length:  # what is binary or sparse already can be hard to beat
        found = Compressed(as_it_is, before, before, wrong, wrong, length, size, tuple(task.steps), None)
        found = replace(found, reason=_reason(task, length))
        if task.best is None and not interrupted:
            warn(
                f"compress: {found.reason}, so the network comes back as it was given, {length:,} bytes. Allow a larger increase, "
                "lower the learning rate of a compressor that trains, or take one that goes on to finer steps (GridRounding, Uniform)"
            )
    else:
        decoded, step = task.best
        found = Compressed(decoded, step.loss, before, step.error, wrong, step.bytes, size, tuple(task.steps), step)
    return replace(found, interrupted=interrupted)


def _data(
    batches: Iterable[Any], loss: Loss, validate: Iterable[Any] | None, training: Training | None
) -> tuple[list[Any], Training]:
    """What the loss is kept on, and what is learned from."""
    own = Training.over(loss, batches) if training is None else training
    if validate is not None:
        again_and_again("validate", validate)
    kept = list(batches if validate is None else validate)
    if not kept:
        raise ValueError(f"compress: {'batches' if validate is None else 'validate'} is empty; there has to be data")
    return kept, own


def _reason(task: Task, length: int) -> str:
    """Why the network stays as it is.

    Args:
        task: after the search.
        length: bytes of its file.
    """
    if task.best is not None:
        return f"the smallest candidate within the bound takes {task.best[1].bytes:,} bytes, the network as it is {length:,}"
    if not task.steps:
        return "there was no candidate"
    near = min(task.steps, key=lambda step: step.loss if math.isfinite(step.loss) else math.inf)
    if not math.isfinite(near.loss):
        return "no candidate has a finite loss"
    told = f"loss {near.loss:.6g} (at most {task.bound.loss:.6g})"
    if near.error is not None and math.isfinite(task.bound.largest_error):
        told += f" and error {near.error:.6g} (at most {task.bound.largest_error:.6g})"
    return f"none of {len(task.steps)} candidates kept the bound; the nearest has {told}"


def _check_numbers(compressor: Compressor) -> None:
    """Refuse settings that are no numbers, or endless."""
    assert is_dataclass(compressor)
    for field in fields(compressor):
        given = getattr(compressor, field.name)
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(value, Compressor):
                _check_numbers(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{type(compressor).__name__}({field.name}={given}): has to be finite")


def _check_trainable(net: nn.Module) -> None:
    """Refuse half precision, in which latents, codewords and Adam's averages come to nothing."""
    low = [n for n, p in net.named_parameters() if p.is_floating_point() and p.element_size() < 4]
    if low:
        raise ValueError(
            f"compress: {low[0]!r} is {net.get_parameter(low[0]).dtype}, and this compressor trains, which takes float32: give "
            "net.float(), or a compressor that does not train. Files hold what fits float16 at that width anyway"
        )


def _bound(
    net: nn.Module, objective: Objective, max_loss: float, error: Objective | None, max_error: float
) -> tuple[Bound, float, float | None]:
    """The bound around a network, its loss and its error."""
    for name, value in (("max_loss_increase", max_loss), ("max_error_increase", max_error)):
        if not contains("[0, inf]", value):
            raise ValueError(f"compress({name}={value}): how much it may grow; at least 0, and math.inf for any")
    loss, wrong = objective(net), None if error is None else error(net)
    for name, found in (("loss", loss), ("error", wrong)):
        if found is not None and not math.isfinite(found):
            raise ValueError(
                f"compress: the {name} of the given network is {found}, so there is nothing to keep; check the network and "
                "the data of the objective"
            )
    largest = math.inf if wrong is None else wrong + max_error
    return Bound(objective, loss + max_loss, error, largest), loss, wrong
