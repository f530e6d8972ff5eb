"""Compression of a trained network under a bound on its loss, down to an entropy-coded `.pare` file."""

from paring.compress.adaptive import AdaptivePrecision
from paring.compress.codebooks import Codebooks
from paring.compress.combined import Combined, Stage
from paring.compress.compress import compress
from paring.compress.deep_compression import DeepCompression
from paring.compress.entropy_rounding import EntropyRounding
from paring.compress.grid_rounding import GridRounding
from paring.compress.hashed import Hashed
from paring.compress.kmeans import KMeans
from paring.compress.objective import Objective
from paring.compress.smallest import Smallest
from paring.compress.soft_sharing import SoftSharing
from paring.compress.task import Bound, Compressed, Compressor, NeedsTraining, Step, Task
from paring.compress.training import Training
from paring.compress.uniform import Uniform

__all__ = [
    "AdaptivePrecision",
    "Bound",
    "Codebooks",
    "Combined",
    "Compressed",
    "Compressor",
    "DeepCompression",
    "EntropyRounding",
    "GridRounding",
    "Hashed",
    "KMeans",
    "NeedsTraining",
    "Objective",
    "Smallest",
    "SoftSharing",
    "Stage",
    "Step",
    "Task",
    "Training",
    "Uniform",
    "compress",
]
