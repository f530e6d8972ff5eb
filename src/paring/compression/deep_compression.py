"""Deep Compression (Han, Mao, Dally, ICLR 2016): prune by magnitude, share by k-means, retrain the centroids.

Pruning goes in stages with retraining between; k-means begins with values evenly spread over the range ("linear"
initialisation), over the weights that stay; centroids move on summed gradients. The file is ours, range coded; the paper's
own estimate (Huffman-coded relative positions and indices) is `huffman.estimate`, and stands beside it.

Where we differ: thresholds come from densities, not from standard deviations by hand; biases are not pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

from paring import select
from paring.compression.huffman import estimate
from paring.compression.pruning import prune, retrain
from paring.compression.task import Compressor, Task, working_copy
from paring.compression.tuning import estimate_norms, tune_codewords
from paring.compression.weight_sharing import Sharing


@dataclass(frozen=True)
class DeepCompression(Compressor):
    """Prune, share, retrain.

    Args:
        densities: shares of the weights that stay, stage by stage; each stage is offered, until the bound breaks.
        allocation: how the tensors share a density.
        dense_values: centroids of linear layers and embeddings (the paper: 32).
        conv_values: centroids of convolutions (the paper: 256).
        epochs: retraining after each pruning.
        tune: epochs of centroid retraining.

    Raises:
        ValueError: a number out of its range.
    """

    densities: tuple[float, ...] = (0.3, 0.15, 0.08, 0.05)
    allocation: select.Allocation = select.Global(least=1)  # noqa: RUF009  # a frozen value
    dense_values: int = 32
    conv_values: int = 256
    epochs: float = 3.0
    tune: float = 1.0

    def __post_init__(self) -> None:
        if not self.densities or not all(0 < d <= 1 for d in self.densities):
            raise ValueError(f"DeepCompression(densities={self.densities}): shares in (0, 1]")
        if min(self.dense_values, self.conv_values) < 1 or self.epochs < 0 or self.tune < 0:
            raise ValueError("DeepCompression: at least one centroid, and epochs that are not negative")

    @property
    def trains(self) -> bool:
        return True

    def run(self, task: Task) -> None:
        net, first = working_copy(task.net), 0
        for density in sorted(self.densities, reverse=True):
            masks = prune(net, density, self.allocation)
            if self.epochs:
                retrain(net, masks, task.training, self.epochs, first=first)
            first += max(1, round(self.epochs))
            twin = working_copy(net)
            sharing = Sharing.of(twin, "layer", keep_zeros=True)
            sizes = {
                n: self.conv_values if len(shape) > 2 else self.dense_values for n, shape in sharing.shapes.items()
            }
            sharing.fit(dict(twin.named_parameters()), sizes, begin="linear")
            if self.tune:
                tune_codewords(twin, sharing, task.training, self.tune, first=first)
            else:
                sharing.halve()
                sharing.write(twin)
            estimate_norms(twin, task.training)
            if not task.offer(twin, density=density, huffman_csr_bytes=estimate(twin)).within:
                return
