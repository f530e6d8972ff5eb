"""What became of each layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from paring.bits.check import Agreement
from paring.bits.contract import BitLayer


@dataclass(frozen=True)
class Line:
    """One layer with weights.

    Attributes:
        name: in the network.
        kind: class of the layer.
        bits: it runs on bits.
        reason: why not; else where its output goes.
        before: bytes of its parameters.
        after: bytes of what it has in the new network.
    """

    name: str
    kind: str
    bits: bool
    reason: str
    before: int
    after: int


@dataclass(frozen=True)
class BitsReport:
    """Layer by layer.

    Attributes:
        lines: the layers.
        before: bytes of parameters and buffers of the float network.
        after: of the new one.
        agreement: what the check on the example found.
    """

    lines: tuple[Line, ...]
    before: int
    after: int
    agreement: Agreement

    def __str__(self) -> str:
        width = max((len(line.name) for line in self.lines), default=5)
        told = [
            f"{line.name:<{width}}  {line.kind:<8}  {'bits' if line.bits else 'torch':<5}  "
            f"{line.before:>11,} -> {line.after:>9,} bytes  {line.reason}"
            for line in self.lines
        ]
        found = self.agreement
        told.append(
            f"{self.before:,} -> {self.after:,} bytes; {found.bits:,} bits equal to the float32 layers' on the example, "
            f"of which the float32 network rounds {found.rounded:,} the other way; outputs differ by at most "
            f"{found.difference:.3g} (largest {found.largest:.3g})"
        )
        return "\n".join(told)


def size(module: nn.Module) -> int:
    """Bytes of parameters and buffers, tied ones once."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def purpose(layer: BitLayer) -> str:
    """Where the output of a layer of bits goes."""
    return (
        f"compared with {layer.levels} edge{'s' * (layer.levels > 1)} a channel" if layer.levels else "float32 output"
    )
