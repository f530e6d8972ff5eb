"""Everything in one call: prune, remove, share, code.

    prune   a method's gates or masks (`paring.attach`), trained to the end of its schedule
    remove  what closed, exactly (`Run.finish`)
    share   any compressor on what is left; codebooks with zeros kept by default
    code    the `.pare` file, as always

Several stages of pruning follow one another: unit gates first, then single weights, say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from paring.compression.codebooks import Codebooks
from paring.compression.noise import dropout
from paring.compression.task import Compressor, Task, working_copy
from paring.compression.training import Descent
from paring.compression.tuning import estimate_norms
from paring.core import Method
from paring.run import attach


@dataclass(frozen=True)
class Stage:
    """One training with a method's gates, ended by removal.

    Args:
        method: what the network may lose; of one round.
        epochs: length of the training.
        lr: first learning rate; the training's by default.
        final: last learning rate as a part of the first.
        inputs: dropout rate of what the first layer reads, in [0, 1).
        hidden: dropout rate of what the other linear layers read, in [0, 1).
        drop_inputs: see `Run.finish`.

    Raises:
        ValueError: a number out of its range, or a method of several rounds.
    """

    method: Method = field(default_factory=Method)
    epochs: float = 10.0
    lr: float | None = None
    final: float = 0.0
    inputs: float = 0.0
    hidden: float = 0.0
    drop_inputs: bool | None = None

    def __post_init__(self) -> None:
        if not self.epochs > 0 or (self.lr is not None and not self.lr > 0) or not 0 <= self.final <= 1:
            raise ValueError(f"Stage(epochs={self.epochs}, lr={self.lr}, final={self.final}): out of range")
        if self.method.rounds != 1:
            raise ValueError(
                f"Stage(method={self.method!r}): a method of {self.method.rounds} rounds; give one stage each"
            )


@dataclass(frozen=True)
class Combined(Compressor):
    """Prune, remove, share, code.

    Args:
        stages: of pruning, in turn.
        share: what compresses the pruned network; it is offered as it is, too.
    """

    stages: tuple[Stage, ...] = (Stage(),)
    share: Compressor = field(default_factory=lambda: Codebooks(values=8, keep_zeros=True))

    @property
    def trains(self) -> bool:
        return True

    def run(self, task: Task) -> None:
        if task.example is None:
            raise ValueError(
                "Combined removes units and has to capture the network for it: give compress(example=x[:2]), an example input"
            )
        net, first = working_copy(task.net), 0
        for number, stage in enumerate(self.stages):
            net = self._pruned(task, net, stage, first)
            first += max(1, round(stage.epochs))
            task.offer(net, stage=number)
        with task.on(net):
            self.share.run(task)

    def _pruned(self, task: Task, net: nn.Module, stage: Stage, first: int) -> nn.Module:
        """The network after one stage."""
        training = task.training
        steps = max(1, round(stage.epochs * training.steps))
        run = attach(net, stage.method, task.example, steps=steps, epoch_steps=training.steps)
        rate = training.lr if stage.lr is None else stage.lr
        descent = Descent(training, run.parameter_groups(rate), stage.epochs, lr=rate, final=stage.final, first=first)

        def penalty() -> Tensor:
            return run.penalty()

        with dropout(net, stage.inputs, stage.hidden):
            descent.run(
                net,
                penalty=penalty,
                before=lambda: run.before_step(descent.optimizer),
                after=lambda: run.after_step(descent.optimizer),
            )
        estimate_norms(net, training)
        return working_copy(run.finish(drop_inputs=stage.drop_inputs))
