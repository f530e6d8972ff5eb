"""paring: train PyTorch networks that come out small, and remove what was lost exactly.

run = pr.attach(net, pr.L0(price=1e-6, at="units"), example=x[:2])
opt = torch.optim.Adam(run.parameter_groups(lr=1e-3))
...  (loss + run.penalty()).backward(); run.step(opt)
small = run.finish()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; at run time each name is imported when it is asked for
    from paring import select
    from paring.analysis import CaptureError
    from paring.core import Clock, FileError, Gate, Method, ParingWarning, Stack
    from paring.cost import report
    from paring.files import PareError, load, pack, save, to_onnx, unpack
    from paring.gates import groups
    from paring.gates.relax import HardConcrete, Relaxation
    from paring.methods import (
        DNW,
        GMP,
        IMP,
        L0,
        SET,
        STR,
        AtInit,
        Binarize,
        Budget,
        ConcreteDropout,
        ContinuousSparsification,
        Dense,
        EdgePopup,
        Masked,
        Price,
        RigL,
        Shrink,
        Slimming,
        SparseVD,
        Supermask,
    )
    from paring.methods.binarize import binarize
    from paring.removal import compact
    from paring.run import Run, attach
    from paring.train import Recipe, fit

__version__ = "0.1.0"

__all__ = [
    "DNW",
    "GMP",
    "IMP",
    "L0",
    "SET",
    "STR",
    "AtInit",
    "Binarize",
    "Budget",
    "CaptureError",
    "Clock",
    "ConcreteDropout",
    "ContinuousSparsification",
    "Dense",
    "EdgePopup",
    "FileError",
    "Gate",
    "HardConcrete",
    "Masked",
    "Method",
    "PareError",
    "ParingWarning",
    "Price",
    "Recipe",
    "Relaxation",
    "RigL",
    "Run",
    "Shrink",
    "Slimming",
    "SparseVD",
    "Stack",
    "Supermask",
    "attach",
    "binarize",
    "compact",
    "fit",
    "groups",
    "load",
    "pack",
    "report",
    "save",
    "select",
    "to_onnx",
    "unpack",
]

_HOMES = {
    "paring.analysis": ("CaptureError",),
    "paring.core": ("Clock", "FileError", "Gate", "Method", "ParingWarning", "Stack"),
    "paring.cost": ("report",),
    "paring.files": ("PareError", "load", "pack", "save", "to_onnx", "unpack"),
    "paring.gates": ("groups",),
    "paring.gates.relax": ("HardConcrete", "Relaxation"),
    "paring.methods.binarize": ("binarize",),
    "paring.removal": ("compact",),
    "paring.run": ("Run", "attach"),
    "paring.train": ("Recipe", "fit"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = (
    "analysis",
    "bits",
    "cli",
    "compress",
    "core",
    "cost",
    "data",
    "files",
    "gates",
    "hard",
    "methods",
    "models",
    "removal",
    "run",
    "select",
    "testing",
    "train",
)


def __getattr__(name: str) -> Any:
    """A public name, or a package in here, imported now: `paring --help` needs no torch."""
    if name in _ROOMS:
        return import_module(f"paring.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'paring' has no attribute {name!r}")
    found = getattr(import_module(_HOME.get(name, "paring.methods")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
