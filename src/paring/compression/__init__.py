"""Compression of a trained network under a bound on its loss, down to an entropy-coded `.pare` file."""

from paring.compression.adaptive import AdaptivePrecision
from paring.compression.calibrated_rounding import CalibratedRounding
from paring.compression.codebooks import Codebooks
from paring.compression.combined import Combined, Stage
from paring.compression.compress import compress
from paring.compression.deep_compression import DeepCompression
from paring.compression.entropy_rounding import EntropyRounding
from paring.compression.grid_rounding import GridRounding
from paring.compression.hashed import Hashed
from paring.compression.kmeans import KMeans
from paring.compression.objective import Objective
from paring.compression.own_outputs import own_outputs
from paring.compression.smallest import Smallest
from paring.compression.soft_sharing import SoftSharing
from paring.compression.task import Bound, Compressed, Compressor, Step, Task
from paring.compression.training import Training
from paring.compression.uniform import Uniform

__all__ = [
    "AdaptivePrecision",
    "Bound",
    "CalibratedRounding",
    "Codebooks",
    "Combined",
    "Compressed",
    "Compressor",
    "DeepCompression",
    "EntropyRounding",
    "GridRounding",
    "Hashed",
    "KMeans",
    "Objective",
    "Smallest",
    "SoftSharing",
    "Stage",
    "Step",
    "Task",
    "Training",
    "Uniform",
    "compress",
    "own_outputs",
]
