"""What removal did, layer by layer, for the user's eyes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch

from paring.analysis.interpret import Interpretation
from paring.analysis.liveness import Reader, read_by
from paring.analysis.state import Liveness, Site

_LEGEND = (
    "units a → b: before and after. Gone are units that were zero, constant and folded into what reads them, constant and "
    "merged into one channel, or unread. pr.report(small, example, before=dense) has MACs, bytes and time"
)
Mode = Literal["eval", "both"]
Form = Literal["module", "graph"]


@dataclass(frozen=True)
class Row:
    """What happened to one layer. zero/folded/merged/unread: units removed; kept: dead units that stayed, by reason."""

    layer: str
    before: int
    after: int
    zero: int
    folded: int
    merged: int
    unread: int
    kept: dict[str, int]


@dataclass(frozen=True)
class Fusion:
    """A norm, and the layer in front of it that took it over, by module path."""

    layer: str
    norm: str


@dataclass(frozen=True)
class Report:
    """What `compact` did. parameters: before and after. rolled_back: layer -> what differed. notes: what to know.

    form: "module" is the user's own classes with smaller parameters, "graph" their captured computation (`GraphNet`).
    fused: norms that are part of the layer in front of them now. silenced: layers of branches that only added zeros.
    """

    rows: tuple[Row, ...]
    parameters: tuple[int, int]
    mode: Mode
    verified: bool
    rolled_back: dict[str, str]
    notes: tuple[str, ...]
    form: Form = "module"
    fused: tuple[Fusion, ...] = ()
    silenced: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = ("layer", "units", "zero", "folded", "merged", "unread", "dead but kept")
        table = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(head) - 1)]
        lines = []
        for line in table:
            cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:-1], widths[1:], strict=True))]
            lines.append("  ".join([*cells, line[-1]]).rstrip())
        before, after = self.parameters
        lines.append(f"parameters {before:,} → {after:,}; same function in {self.mode} mode" + self._how())
        lines += [f"fused {one.norm} into {one.layer}" for one in self.fused]
        if self.silenced:
            lines.append(f"gone with branches that only added zeros: {', '.join(self.silenced)}")
        lines += [f"rolled back {layer}: {why}" for layer, why in self.rolled_back.items()]
        return "\n".join([*lines, *([_LEGEND] if self.rows else []), *self.notes])

    def _how(self) -> str:
        modes = {"eval": "", "both": "s (eval and train)"}[self.mode]
        modes += ", in graph form" if self.form == "graph" else ""
        return f"{modes}, {'verified' if self.verified else 'not verified'}"


def _cells(row: Row) -> tuple[str, ...]:
    kept = "; ".join(f"{n} {reason}" for reason, n in row.kept.items())
    return (
        row.layer or "(net)",
        str(row.after) if row.before == row.after else f"{row.before:,} → {row.after:,}",
        *(str(n) for n in (row.zero, row.folded, row.merged, row.unread)),
        kept,
    )


def rows_of(
    analysis: Interpretation, readers: list[Reader], liveness: Liveness, spare: Collection[str]
) -> tuple[Row, ...]:
    """One row per layer: what went, what stays, and why."""
    zero = torch.ones(analysis.units + 1, dtype=torch.bool)
    constant = zero.clone()
    padded: dict[int, str] = {}
    seen = torch.zeros(analysis.units + 1, dtype=torch.bool)
    merged = seen.clone()
    for reader in readers:
        site = reader.site
        seen[site.columns] = True
        zero[site.columns[reader.constants != 0]] = False
        constant[site.columns[site.constants.isnan()]] = False
        merged[site.columns[reader.merge & reader.read(liveness.needed)]] = True
        for unit in site.columns[(~reader.free | reader.merge) & site.constants.isfinite()].tolist():
            padded.setdefault(unit, _obstacle(site))
    read = read_by(analysis.units, liveness.needed, readers)
    constant &= seen
    rows: dict[str, Row] = {}
    for site in analysis.sites:
        if site.name in rows:
            continue
        kept = liveness.kept[site.units]
        gone, stay = site.units[~kept], site.units[kept]
        nothing = gone[zero[gone] & seen[gone]]
        unread = gone[~(zero[gone] & seen[gone]) & ~read[gone]]
        reasons: Counter[str] = Counter()
        dead = constant[stay] | (seen[stay] & ~read[stay]) | site.value[kept].isfinite()
        for unit in stay[dead].tolist():
            reason = "removing it changed the outputs" if site.name in spare else analysis.kept.get(unit, "")
            reason = reason or analysis.mixed.get(unit, "")
            reason = reason or ("all heads or groups keep the same number" if unit in liveness.rectangular else "")
            reason = reason or ("inputs of an N:M layer go in whole groups" if unit in liveness.grouped else "")
            reason = reason or ("the last unit of its layer" if unit in liveness.last else padded.get(unit, ""))
            reason = reason or analysis.coupled.get(unit, "")
            reasons[reason] += bool(reason)
        moved = len(gone) - len(nothing) - len(unread)
        joined = int((merged[gone] & ~(zero[gone] & seen[gone]) & read[gone]).sum())
        rows[site.name] = Row(
            site.name,
            len(kept),
            int(kept.sum()),
            len(nothing),
            moved - joined,
            joined,
            len(unread),
            {k: n for k, n in reasons.items() if n},
        )
    return tuple(rows.values())


def _obstacle(site: Site) -> str:
    if site.padded:
        return f"constant but not zero at the padded convolution '{site.name}'"
    return f"constant in '{site.name}', but not the same in train and eval mode"
