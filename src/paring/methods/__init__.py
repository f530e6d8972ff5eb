"""Methods, one file each. To add one: its file, one line here, one row in `paring.testing.zoo`."""

from paring.core import Method as Dense
from paring.methods.at_init import AtInit
from paring.methods.binarize import Binarize
from paring.methods.budget import Budget
from paring.methods.concrete_dropout import ConcreteDropout
from paring.methods.continuous_sparsification import ContinuousSparsification
from paring.methods.dnw import DNW
from paring.methods.edge_popup import EdgePopup
from paring.methods.gmp import GMP
from paring.methods.hold import Hold
from paring.methods.imp import IMP
from paring.methods.l0 import L0
from paring.methods.masked import Masked
from paring.methods.price import Price
from paring.methods.rigl import RigL
from paring.methods.set import SET
from paring.methods.shrink import Shrink
from paring.methods.slimming import Slimming
from paring.methods.soft_threshold import STR
from paring.methods.sparse_vd import SparseVD
from paring.methods.supermask import Supermask

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
    "ConcreteDropout",
    "ContinuousSparsification",
    "Dense",
    "EdgePopup",
    "Hold",
    "Masked",
    "Price",
    "RigL",
    "Shrink",
    "Slimming",
    "SparseVD",
    "Supermask",
]
