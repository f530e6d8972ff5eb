"""Small, well-known image data sets as whole tensors, checked to the byte, and the augmentation for training."""

from __future__ import annotations

from paring.data.augment import Augment
from paring.data.data_error import DataError
from paring.data.idx import read_idx
from paring.data.sets import NAMES, SIZES, Record, fetch, load, status
from paring.data.split import Dataset, Split, stratified

__all__ = [
    "NAMES", "SIZES", "Augment", "DataError", "Dataset", "Record", "Split", "fetch", "load", "read_idx", "status", "stratified",
]  # fmt: skip
