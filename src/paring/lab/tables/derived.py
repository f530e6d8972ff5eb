"""Experiments that begin with what another one found: its layer-wise densities, or its masks.

Each names the other in its settings. Running it runs the other first, in the other's own folder, where a finished one is
only read; so tables that hold both train it once.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Any

from paring import rules
from paring.core import Method
from paring.data import Dataset
from paring.lab.config import digest
from paring.lab.experiment import Experiment
from paring.lab.tickets.retrain import Control, Retrain
from paring.methods import GMP


@dataclass(frozen=True)
class Transplanted(Experiment):
    """A method that takes an allocation, at the layer-wise densities that another experiment ended with.

    The densities are those of the weights that compute something: one that nobody reads is not counted.

    Args:
        source: the experiment whose densities are taken; `method` gets them in place of its own density and allocation.

    Raises:
        ValueError: the method is none that shares a density among layers, or the source has another network.
    """

    _: KW_ONLY
    source: Experiment

    def __post_init__(self) -> None:
        if not isinstance(self.method, GMP):
            raise ValueError(f"Transplanted(method={self.method!r}): only GMP is given densities here")
        if self.source.model != self.model:
            raise ValueError(
                f"Transplanted: {self.source.model}'s layers are not those of {self.model}; give a source on the same network"
            )

    def given(self, row: dict[str, Any]) -> Experiment:
        """The experiment that follows from the source's row."""
        assert isinstance(self.method, GMP)
        layers = tuple((name, layer["density"]) for name, layer in row["layers"].items())
        method = replace(self.method, density=row["live_density"], allocation=rules.Given(layers))
        return _plain(self, method)

    def run(self, root: Path, *, progress: bool = True, data: Dataset | None = None) -> dict[str, Any]:
        row = self.source.run(root, progress=progress)
        found = self.given(row).run(root, progress=progress, data=data)
        return {**found, "run": self.key, "source_run": self.source.key}


@dataclass(frozen=True)
class Isolated(Experiment):
    """The mask of one round of this experiment's search, trained in isolation, as the ticket or as one of its controls.

    Args:
        round: whose mask.
        control: what is trained under it, see `paring.lab.tickets.retrain`.
    """

    _: KW_ONLY
    round: int
    control: Control

    @property
    def search(self) -> Experiment:
        """The experiment whose masks these are."""
        return _plain(self, self.method)

    def run(self, root: Path, *, progress: bool = True, data: Dataset | None = None) -> dict[str, Any]:
        found = self.search.run(root, progress=progress, data=data)["rounds"][self.method.decided(self.round)]
        retrain = Retrain(self.search, self.round, self.control, at=getattr(self.method, "at", "weights"))
        row = retrain.run(root, progress=progress, data=data)
        of = {"run": self.key, "search_run": digest(self.search), "rounds": []}
        spent = {name: found[name] + row[name] for name in ("epochs", "train_seconds")}  # the search included
        return {**row, **of, **spent, "architecture": f"round {self.round}"}


def _plain(derived: Experiment, method: Method) -> Experiment:
    """The experiment that everything but the derivation says, with this method."""
    common = {f.name: getattr(derived, f.name) for f in fields(Experiment)}
    return Experiment(**{**common, "method": method})
