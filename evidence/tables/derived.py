"""Experiments that begin with what another one found: its layer-wise densities, its widths, or its masks.

Each names the other in its settings. Running it runs the other first, in the other's own folder, where a finished one is
only read; so tables that hold both train it once.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from paring import select
from paring.cli.config import digest
from paring.cli.experiment import SMALL, Experiment
from paring.cli.tickets.retrain import Control, Retrain
from paring.core import Method
from paring.data import Dataset
from paring.files import load as load_net
from paring.methods import GMP, Slimming


@dataclass(frozen=True)
class Sourced(Experiment):
    """An experiment that begins with what another experiment on the same network found.

    Args:
        source: the other experiment.

    Raises:
        ValueError: the source has another network.
    """

    _: KW_ONLY
    source: Experiment

    def __post_init__(self) -> None:
        if self.source.model != self.model:
            raise ValueError(
                f"{type(self).__name__}: {self.source.model}'s layers are not those of {self.model}; "
                "give a source on the same network"
            )


@dataclass(frozen=True)
class Transplanted(Sourced):
    """A method that takes an allocation, at the layer-wise densities that another experiment ended with.

    The densities are those of the weights that compute something: one that nobody reads is not counted.

    Args:
        source: the experiment whose densities are taken; `method` gets them in place of its own density and allocation.

    Raises:
        ValueError: the method is none that shares a density among layers, or the source has another network.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.method, GMP):
            raise ValueError(f"Transplanted(method={self.method!r}): only GMP is given densities here")
        super().__post_init__()

    def given(self, row: dict[str, Any]) -> Experiment:
        """The experiment that follows from the source's row."""
        assert isinstance(self.method, GMP)
        layers = tuple((name, layer["density"]) for name, layer in row["layers"].items())
        method = replace(self.method, density=row["live_density"], allocation=select.Given(layers))
        return _plain(self, method)

    def run(self, root: Path, *, progress: bool = True, data: Dataset | None = None) -> dict[str, Any]:
        row = self.source.run(root, progress=progress)
        found = self.given(row).run(root, progress=progress, data=data)
        return {**found, "run": self.key, "source_run": self.source.key}


@dataclass(frozen=True)
class Narrowed(Sourced):
    """Network slimming to the widths that another experiment ended with; its search is counted.

    Args:
        source: the experiment whose widths are taken; `method` gets them in place of its own density and allocation.

    Raises:
        ValueError: the method is not network slimming, or the source has another network.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.method, Slimming):
            raise ValueError(f"Narrowed(method={self.method!r}): only Slimming is given widths here")
        super().__post_init__()

    def given(self, root: Path, data: Dataset) -> Experiment:
        """The experiment that follows from the source's small network below `root`."""
        assert isinstance(self.method, Slimming)
        dense = widths(self.source.network(data))
        small = widths(load_net(lambda: self.source.network(data), root / self.source.name / SMALL))
        shares = tuple((name, small[name] / width) for name, width in dense.items() if name in small)
        method = replace(self.method, density=min(share for _, share in shares), allocation=select.Given(shares))
        return _plain(self, method)

    def run(self, root: Path, *, progress: bool = True, data: Dataset | None = None) -> dict[str, Any]:
        found = self.source.run(root, progress=progress)
        row = self.given(root, data or self.dataset()).run(root, progress=progress, data=data)
        spent = {name: found[name] + row[name] for name in ("epochs", "train_seconds")}
        return {**row, **spent, "run": self.key, "source_run": self.source.key}


@dataclass(frozen=True)
class Isolated(Experiment):
    """The mask of one round of this experiment's search, trained in isolation, as the ticket or as one of its controls.

    Args:
        round: whose mask.
        control: what is trained under it, see `paring.cli.tickets.retrain`.
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


def widths(net: nn.Module) -> dict[str, int]:
    """Units of every convolution and fully connected layer, by name."""
    kinds = (nn.Conv2d, nn.Linear)
    return {name: module.weight.shape[0] for name, module in net.named_modules() if isinstance(module, kinds)}


def _plain(derived: Experiment, method: Method) -> Experiment:
    """The experiment that everything but the derivation says, with this method."""
    common = {f.name: getattr(derived, f.name) for f in fields(Experiment)}
    return Experiment(**{**common, "method": method})
