"""paring: make PyTorch networks small, and remove what was lost exactly.

A trained network, smaller:    small, report = pr.prune(net, batches, to=pr.Budget(macs=0.5), epochs=5)
Prune while training:          run = pr.attach(net, pr.L0(price=pr.Budget(macs=0.25)), example=x[:2]); run.finish()
Remove what is dead:           small, report = pr.compact(net, x[:2])
Few bytes on disk:             pr.compress(net, batches, loss, max_loss_increase=0.01); pr.pack(net, "net.pare")
Fast where it runs:            fast, report = pr.deploy(small, x[:1]); pr.to_onnx(small, x[:2], "small.onnx")
Hard thresholds, ±1 weights:   pr.binarize(net, x[:2]); pr.pack_bits(small, x[:2]); pr.ftprop(points, targets, hidden)

One level down is what methods are made of: `pr.select`, `pr.gates`, `pr.hard`, `pr.compression`, `pr.cost`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; at run time each name is imported when it is asked for
    from paring import analysis as analysis
    from paring import bits as bits
    from paring import compression as compression
    from paring import core as core
    from paring import cost as cost
    from paring import data as data
    from paring import deployment as deployment
    from paring import files as files
    from paring import gates as gates
    from paring import hard as hard
    from paring import integrations as integrations
    from paring import methods as methods
    from paring import models as models
    from paring import removal as removal
    from paring import run as run
    from paring import select as select
    from paring import train as train
    from paring.analysis import CaptureError
    from paring.bits import pack_bits
    from paring.compression.compress import compress
    from paring.compression.own_outputs import own_outputs
    from paring.core import FileError, Method, ParingWarning, Stack
    from paring.cost import report
    from paring.deployment.deploy import deploy
    from paring.files import PareError, load, pack, save, to_onnx, unpack
    from paring.gates import groups
    from paring.hard import ftprop
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
        Hold,
        Masked,
        Price,
        RigL,
        Shrink,
        Slimming,
        SparseVD,
        Supermask,
    )
    from paring.methods.binarize import binarize
    from paring.pruning.prune import prune
    from paring.pruning.search import Search
    from paring.pruning.sensitivity import sensitivity
    from paring.pruning.teacher import Teacher
    from paring.pruning.tune import Tune
    from paring.removal import compact, drop_rows
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
    "ConcreteDropout",
    "ContinuousSparsification",
    "Dense",
    "EdgePopup",
    "FileError",
    "Hold",
    "Masked",
    "Method",
    "PareError",
    "ParingWarning",
    "Price",
    "Recipe",
    "RigL",
    "Run",
    "Search",
    "Shrink",
    "Slimming",
    "SparseVD",
    "Stack",
    "Supermask",
    "Teacher",
    "Tune",
    "attach",
    "binarize",
    "compact",
    "compress",
    "deploy",
    "drop_rows",
    "fit",
    "ftprop",
    "groups",
    "load",
    "own_outputs",
    "pack",
    "pack_bits",
    "prune",
    "report",
    "save",
    "select",
    "sensitivity",
    "to_onnx",
    "unpack",
]

_HOMES = {
    "paring.analysis": ("CaptureError",),
    "paring.bits": ("pack_bits",),
    "paring.compression": ("compress", "own_outputs"),
    "paring.core": ("FileError", "Method", "ParingWarning", "Stack"),
    "paring.cost": ("report",),
    "paring.deployment": ("deploy",),
    "paring.files": ("PareError", "load", "pack", "save", "to_onnx", "unpack"),
    "paring.gates": ("groups",),
    "paring.hard": ("ftprop",),
    "paring.methods.binarize": ("binarize",),
    "paring.pruning": ("Search", "Teacher", "Tune"),
    "paring.pruning.prune": ("prune",),
    "paring.pruning.sensitivity": ("sensitivity",),
    "paring.removal": ("compact", "drop_rows"),
    "paring.run": ("Run", "attach"),
    "paring.train": ("Recipe", "fit"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = (
    "analysis",
    "bits",
    "cli",
    "compression",
    "core",
    "cost",
    "data",
    "deployment",
    "files",
    "gates",
    "hard",
    "integrations",
    "methods",
    "models",
    "pruning",
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
