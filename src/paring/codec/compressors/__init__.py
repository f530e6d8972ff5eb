"""Compressors: ways to make a trained network small while its loss stays within a bound."""

from paring.codec.compressors.adaptive import AdaptivePrecision
from paring.codec.compressors.codebooks import Codebooks
from paring.codec.compressors.combined import Combined, Stage
from paring.codec.compressors.compress import compress
from paring.codec.compressors.deep_compression import DeepCompression
from paring.codec.compressors.entropy_rounding import EntropyRounding
from paring.codec.compressors.grid_rounding import GridRounding
from paring.codec.compressors.hashed import Hashed
from paring.codec.compressors.kmeans import KMeans
from paring.codec.compressors.smallest import Smallest
from paring.codec.compressors.soft_sharing import SoftSharing
from paring.codec.compressors.task import Bound, Compressed, Compressor, NeedsTraining, Step, Task
from paring.codec.compressors.training import Training
from paring.codec.compressors.uniform import Uniform

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
    "Smallest",
    "SoftSharing",
    "Stage",
    "Step",
    "Task",
    "Training",
    "Uniform",
    "compress",
]
