"""What `deploy` did with each layer, and what it gained."""

from __future__ import annotations

from dataclasses import dataclass

from paring.cost import Comparison


@dataclass(frozen=True)
class DeployedLayer:
    """One layer with weights; times are of its call on the example, in microseconds.

    Attributes:
        name: in the network.
        kind: class of the layer.
        shape: of its weight.
        zeros: share of its weights.
        form: in which it runs now; "dense" as it was.
        dense_us: as it was; None where nothing was timed.
        taken_us: as it runs now.
        times: of every form that was tried.
        reason: why it stayed dense; empty where it did not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    zeros: float
    form: str
    dense_us: float | None
    taken_us: float | None
    times: dict[str, float]
    reason: str

    @property
    def saved_us(self) -> float:
        """Microseconds of one call; 0 where it stayed dense."""
        return 0.0 if self.dense_us is None or self.taken_us is None else self.dense_us - self.taken_us

    def __str__(self) -> str:
        shown = f"{'×'.join(map(str, self.shape)):<16} {100 * self.zeros:5.1f} % zeros  {self.form:<16}"
        if self.dense_us is None or self.taken_us is None:
            return f"{shown} {self.reason}"
        tried = f"  {self.reason}" if self.reason else f"  {self.dense_us / self.taken_us:.1f} times as fast"
        return f"{shown} {self.dense_us:8.1f} -> {self.taken_us:8.1f} µs{tried}"


@dataclass(frozen=True)
class DeployReport:
    """Layer by layer, and the whole network, on the example.

    Attributes:
        layers: those with weights that the example reached.
        dense_us: microseconds of one call of the network as it was.
        taken_us: as it is now.
        comparison: of the two, in turns: below 1 when it is faster now.
        before: bytes of parameters and buffers.
        after: of the new network.
        gap: largest difference of the outputs, relative to the largest of each.
        threads: of the CPU.
        shapes: of the example.
        notes: what was asked and not done.
    """

    layers: tuple[DeployedLayer, ...]
    dense_us: float
    taken_us: float
    comparison: Comparison
    before: int
    after: int
    gap: float
    threads: int
    shapes: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=5)
        told = [f"{layer.name:<{width}}  {layer}" for layer in self.layers]
        told.append(
            f"network on {self.shapes}, {self.threads} thread{'s' * (self.threads > 1)}: {self.dense_us:,.0f} -> "
            f"{self.taken_us:,.0f} µs; {self.before:,} -> {self.after:,} bytes; outputs differ by {self.gap:.1e}"
        )
        return "\n".join([*told, *self.notes])
