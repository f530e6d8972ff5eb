"""A gate drawn from a relaxed binary distribution (hard concrete and its relatives), one parameter per gate.

While training, `forward` draws one sample per minibatch (or per example) from the relaxation; in eval mode it is the
relaxation's test-time estimate. A gate can be *frozen*: from then on it shows its estimate in training too, and its
parameters stop moving, so that the weights can settle on the network that will be kept. What a frozen gate shows is a
constant, so it can be *folded* into the weights: then it shows one where it is open, and costs nothing where nothing is
closed. A gate of a trained network is *silent* at first: it shows one where it is open, without noise, so that the network
computes what it did, and its gradient is the slope of the loss in what it shows. Frozen gates can go on to *drop out*,
example by example, with a given probability: noise that regularises and moves nothing.

A gate can *retire*, element by element: closed at test time and hardly ever open in training, for long enough, it is
closed for good. That is an approximation, off unless asked for. A gate that was cut while training draws its noise for
its original shape still and uses what is left of it, so that the other gates see the same noise as without the cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import Gate, noise_dtype
from paring.gates.relax import Relaxation

_LOTS = 1 << 16
_TINY = 1e-12  # gradients of this size count as none


class Phase(IntEnum):
    """What a gate does in training; the number is its saved state.

    `freeze` leads from SAMPLED to FROZEN and from SILENT to SETTLED, `note_folded` from both of these to FOLDED, `silence` and
    `draw` from SAMPLED to SILENT and back; only a loaded state leads elsewhere.
    """

    SAMPLED = 0  # it draws samples, and its parameters move
    FROZEN = 1  # it shows its test-time value for good
    FOLDED = 2  # the weights were multiplied by that value, so it shows one where it is open
    SILENT = 3  # it shows one where it is open, draws nothing, and its gradient is that of the multiplier
    SETTLED = 4  # it was silent and is frozen: it shows one where it is open for good


_FROZEN = (Phase.FROZEN, Phase.FOLDED, Phase.SETTLED)
_ONES = (Phase.FOLDED, Phase.SILENT, Phase.SETTLED)  # it shows one where it is open


def _lots(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform 16-bit integers, four to a random number: what a drop costs is mostly its noise."""
    count = math.prod(shape)
    four = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(1 << 63), None)
    return four.view(torch.int16)[:count].view(shape)


class StochasticGate(Gate):
    """One stochastic gate per element of `shape`.

    Attributes:
        phase: sampled, silent, frozen, settled or folded.
        retired: boolean tensor of `shape`, closed for good; None while retirement is off.
        quiet: for how many optimizer steps each element could have been retired; None while retirement is off.
        slope, square: running means of the gradient and of its square, of `shape`; None unless `keep_slopes` was called.

    Args:
        relaxation: the distribution; its `clamp` is applied after every optimizer step.
        shape: what the gate multiplies.
        keep: probability in (0, 1) from which the initial log-alpha follows.
        spread: standard deviation of the initial log-alpha (0.01 in the L0 paper's code).
        per_example: draw one sample per example instead of one per minibatch.
        shared: several modules hold this gate and must see the same sample: it is drawn at the first forward pass and
            kept until `renew`, which ends an optimizer step.
        lr_scale: learning rate as a multiple of the weights'.
        drop: probability (in 65,536ths) with which a frozen gate shows zero to an example in training, and its value over
            1 - drop otherwise.

    Raises:
        ValueError: `keep` is not in (0, 1), `spread` is negative, or `drop` is not in [0, 1).
    """

    retired: Tensor | None
    quiet: Tensor | None
    slope: Tensor | None
    square: Tensor | None

    def __init__(
        self,
        relaxation: Relaxation,
        shape: tuple[int, ...],
        *,
        keep: float = 0.5,
        spread: float = 0.01,
        per_example: bool = False,
        shared: bool = False,
        lr_scale: float = 1.0,
        drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if spread < 0:
            raise ValueError(f"StochasticGate(spread={spread}): must not be negative")
        if not 0 <= drop < 1:
            raise ValueError(f"StochasticGate(drop={drop}): a probability, in [0, 1)")
        self.relaxation = relaxation
        self.lr_scale = lr_scale
        self.drop = drop
        self.phase = Phase.SAMPLED
        self._all_ones = False  # folded and open everywhere: looked up, as asking a GPU in each pass would wait for it
        self._per_example = per_example
        self._shared = shared
        self._noise: Tensor | None = None
        self._shown: Tensor | None = None
        self._felt: Tensor | None = None
        dtype = dtype or torch.get_default_dtype()
        start = torch.randn(shape, device=device, dtype=noise_dtype(dtype)) * spread + relaxation.logits(keep)
        self.log_alpha = nn.Parameter(start.to(dtype))
        self.register_buffer("retired", None)
        self.register_buffer("quiet", None)
        self.register_buffer("slope", None)
        self.register_buffer("square", None)

    @property
    def shape(self) -> torch.Size:
        return self.log_alpha.shape

    @property
    def per_example(self) -> bool:
        return self.drop > 0 if self.frozen else self._per_example

    def show(self, value: Tensor | None) -> None:
        """Let `forward` return this (of any length, for a network of which a part is computed); None ends that."""
        self._shown = value

    def forward(self, batch: int | None = None) -> Tensor:
        if self._shown is not None:
            return self._shown
        if self.frozen:
            value = self._still(self.value())
            if not (self.drop and self.training) or batch is None:
                return value
            dropped = min(round(self.drop * _LOTS), _LOTS - 1)
            kept = self.part(self._draw((batch, *self.dense_shape))) >= dropped - _LOTS // 2
            return value * kept.to(value.dtype).mul_(_LOTS / (_LOTS - dropped))
        if not self.training:
            return self.value()
        if self.silent:
            return self.value() + (self.log_alpha - self.log_alpha.detach())
        shape = (batch, *self.dense_shape) if self._per_example and batch is not None else self.dense_shape
        u = self._draw(shape)
        return self._shut(self.relaxation.sample(self.log_alpha, self.part(u)))

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform noise, from `rand` or, once frozen, `_lots`.

        A shared gate keeps it (and not the sample: each backward pass has its own graph).
        """
        kept, a = self._noise, self.log_alpha
        dtype = torch.int16 if self.frozen else noise_dtype(a.dtype)
        if kept is not None and kept.shape == shape and kept.dtype == dtype and kept.device == a.device:
            return kept
        noise = _lots(shape, a.device) if self.frozen else torch.rand(shape, device=a.device, dtype=dtype)
        if self._shared:
            self._noise = noise
        return noise

    def renew(self) -> None:
        self._noise = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_noise": None, "_shown": None, "_felt": None}

    def prob_open(self) -> Tensor:
        if self.frozen or self.silent:
            return self.support().to(self.log_alpha.dtype)
        return self._shut(self.relaxation.prob_open(self.log_alpha))

    def value(self) -> Tensor:
        value = self._shut(self.relaxation.estimate(self.log_alpha))
        return (value != 0).to(value.dtype) if self.phase in _ONES else value

    def permanently_closed(self) -> Tensor:
        if self.frozen or self.silent:
            return ~self.support()
        return super().permanently_closed() if self.retired is None else self.retired.clone()

    def _shut(self, value: Tensor) -> Tensor:
        return value if self.retired is None else value.masked_fill(self.retired, 0.0)

    def may_retire(self) -> None:
        """From now on `retire` may be called; its counts are part of the gate's state."""
        self.retired = torch.zeros(self.shape, dtype=torch.bool, device=self.log_alpha.device)
        self.quiet = torch.zeros(self.shape, dtype=torch.int64, device=self.log_alpha.device)

    @torch.no_grad()
    def retire(self, below: float, steps: int, patience: int) -> None:
        """Close for good what was closed at test time with P(open) < `below` at every look for `patience` steps.

        steps: optimizer steps since the last look.
        """
        if self.frozen or self.retired is None or self.quiet is None:
            return
        closed = ~self.support() & (self.prob_open() < below)
        self.quiet = torch.where(closed, self.quiet + steps, 0)
        gone = self.retired | (self.quiet >= patience)
        if bool(gone.all()):  # the likeliest one stays, or nothing would ever get through again
            gone.view(-1)[int(self.log_alpha.argmax())] = False
        self.retired = gone

    def _still(self, value: Tensor) -> Tensor:
        """`value` with a gradient of zero: what counts on every parameter having one (DDP) goes on undisturbed."""
        if not (self.training and torch.is_grad_enabled() and self.log_alpha.requires_grad):
            return value.detach()
        return value.detach() + 0.0 * self.log_alpha

    def freeze(self) -> None:
        """Stop sampling (but for `drop`) and stop moving: the gate keeps its present test-time value for good."""
        if not self.frozen:
            self._enter(Phase.SETTLED if self.silent else Phase.FROZEN)

    def silence(self) -> None:
        """Draw nothing from now on: the gate shows one where it is open, and keeps the slopes of the loss."""
        if not self.frozen:
            self._enter(Phase.SILENT)

    def draw(self) -> None:
        """Draw samples again, from the log-alphas as they are now."""
        if self.silent:
            self._enter(Phase.SAMPLED)

    def constant(self) -> Tensor:
        value = self.value()
        return value.masked_fill(value == 0, 1.0) if self.frozen else torch.ones_like(value)

    def note_folded(self) -> None:
        if self.frozen:
            self._enter(Phase.FOLDED)

    def _enter(self, phase: Phase) -> None:
        if (phase is Phase.FOLDED) != self.folded:  # or DDP would wait for a gradient that never comes
            self.log_alpha.requires_grad_(phase is not Phase.FOLDED)
        self.phase = phase
        self._look()
        self.rest()

    @property
    def transparent(self) -> bool:
        return self._all_ones and self._shown is None and not (self.drop and self.training)

    def _look(self) -> None:
        self._all_ones = self.folded and bool(self.support().all())

    def note_cut(self, before: torch.Size, kept: Mapping[int, Tensor]) -> None:
        super().note_cut(before, kept)
        self._look()

    @property
    def frozen(self) -> bool:
        return self.phase in _FROZEN

    @property
    def silent(self) -> bool:
        """Whether it shows one where it is open and draws nothing, while its parameters are not final."""
        return self.phase is Phase.SILENT

    def keep_slopes(self) -> None:
        """From now on `feel` and `follow` keep running means of the gradient; they are part of the gate's state."""
        dtype = noise_dtype(self.log_alpha.dtype)
        self.slope = torch.zeros(self.shape, dtype=dtype, device=self.log_alpha.device)
        self.square = torch.zeros_like(self.slope)

    def feel(self) -> None:
        """Take the gradient away from the optimizer, for `follow`. Collective where the gate is sharded over processes.

        Zeros stay in its place: the optimizer moves nothing by them, but has a state for each parameter, which
        `torch.distributed.checkpoint` wants.
        """
        gradient = self.log_alpha.grad
        self.log_alpha.grad = None if gradient is None or self.frozen else torch.zeros_like(gradient)
        if gradient is None or self.frozen or self.square is None:
            self._felt = None
            return
        full = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        self._felt = full.detach().to(self.square.dtype).nan_to_num(0.0, 0.0, 0.0)

    @torch.no_grad()
    def follow(self, weight: float) -> None:
        """Take what `feel` took into the running means, with this weight in (0, 1]; nothing where there was no gradient."""
        felt, self._felt = self._felt, None
        if felt is not None and self.slope is not None and self.square is not None:
            self.slope.lerp_(felt, weight)
            self.square.lerp_(felt.square(), weight)

    @torch.no_grad()
    def move(self, rate: float) -> None:
        """Step against the mean gradient over its root mean square, as Adam does (Kingma and Ba 2015): at most by about `rate`."""
        if self.slope is not None and self.square is not None and not self.frozen:
            self.log_alpha.sub_((rate * self.slope / (self.square.sqrt() + _TINY)).to(self.log_alpha.dtype))

    @property
    def folded(self) -> bool:
        """Whether the weights were multiplied by its value."""
        return self.phase is Phase.FOLDED

    def rest(self) -> None:
        if self.frozen:
            self.log_alpha.grad = None

    @torch.no_grad()
    def constrain(self) -> None:
        if self.relaxation.clamp is not None and not self.frozen:
            self.log_alpha.clamp_(*self.relaxation.clamp)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(int(self.phase))

    def set_extra_state(self, state: Any) -> None:
        self.renew()
        self._enter(Phase(state.item()))

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, {self.relaxation}, {self.phase.name.lower()}"
