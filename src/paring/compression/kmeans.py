"""k-means, one shot: every tensor's weights to the nearest of k means, no training."""

from __future__ import annotations

from dataclasses import dataclass

from paring.compression.task import Compressor, Task, working_copy
from paring.compression.tensors import weights_of
from paring.compression.weight_sharing import Scope, Sharing, check_scope


@dataclass(frozen=True)
class KMeans(Compressor):
    """One-shot k-means.

    Args:
        values: sizes k of a codebook to try; the largest first, until the bound breaks.
        scope: which weights share a codebook, see `sharing.groups_of`.
        curvature: weight the squared distances by the diagonal of the empirical Fisher information (Choi et al. 2017),
            damped by its mean.

    Raises:
        ValueError: a size below 1, or none.
    """

    values: tuple[int, ...] = (256, 128, 64, 32, 16, 8, 4, 2)
    scope: Scope = "layer"
    curvature: bool = False

    def __post_init__(self) -> None:
        if not self.values or min(self.values) < 1:
            raise ValueError(f"KMeans(values={self.values}): sizes of at least 1")
        check_scope("KMeans", self.scope)

    def run(self, task: Task) -> None:
        weights = weights_of(task.net)
        h = None
        if self.curvature:
            fisher = task.bound.objective.curvature(task.net, list(weights))
            h = {name: value + value.mean().clamp_min(1e-30) for name, value in fisher.items()}
        for size in sorted(self.values, reverse=True):
            twin, sharing = working_copy(task.net), Sharing.of(task.net, self.scope)
            sharing.fit(weights, size, curvature=h)
            sharing.halve()
            sharing.write(twin)
            if not task.offer(twin, values=size).within:
                return
