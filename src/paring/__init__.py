"""paring: train PyTorch networks that come out small, and remove what was lost exactly.

run = pr.attach(net, pr.L0(price=1e-6, at="units"), example=x[:2])
opt = torch.optim.Adam(run.parameter_groups(lr=1e-3))
...  (loss + run.penalty()).backward(); run.step(opt)
small = run.finish()
"""

from paring import methods, select
from paring.analysis import CaptureError
from paring.core import Clock, FileError, Gate, Method, ParingWarning, Stack
from paring.cost import report
from paring.files import PareError, load, pack, save, to_onnx, unpack
from paring.gates import groups
from paring.gates.relax import HardConcrete, Relaxation
from paring.methods import *  # noqa: F403  # every method: `paring.methods.__all__`
from paring.methods.binarize import binarize
from paring.removal import compact
from paring.run import Run, attach
from paring.train import Recipe, fit

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "Clock",
    "FileError",
    "Gate",
    "HardConcrete",
    "Method",
    "PareError",
    "ParingWarning",
    "Recipe",
    "Relaxation",
    "Run",
    "Stack",
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
__all__ += methods.__all__
