"""`paring pack job.py`: anyone's network, from a job file, as small as a bound on its loss allows."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from paring.cli.compress_progress import CompressProgress
from paring.cli.human import exact
from paring.cli.job import Job, seed_all
from paring.cli.job_file import blamed, opened
from paring.compression import Compressed, Compressor, Training, compress
from paring.compression.tensors import float_bytes
from paring.core.default_loss import cross_entropy
from paring.core.printable import printable
from paring.files import pack
from paring.pruning.prune import Metric, measured


def pack_job(
    what: Path, out: Path, increase: float, compressor: Compressor, *, lr: float, signed_zeros: bool, quiet: bool
) -> int:
    """Compress the network of a job file, and write its file if it holds.

    Args:
        what: the job file.
        out: the .pare file.
        increase: how much the loss may grow.
        compressor: how to compress.
        lr: learning rate of compressors that learn.
        signed_zeros: keep -0.0 apart from 0.0.
        quiet: show no progress.
    """
    with opened(what, 0) as job, blamed(what):
        for line in () if quiet else job.said:
            print(f"note: {line}", file=sys.stderr)
        if job.validate is None and not quiet:
            print(
                "note: there is no validate(), so the loss is kept on batches(), which calibration and training see too",
                file=sys.stderr,
            )
        found = _compressed(job, increase, compressor, lr, quiet)
        if found.interrupted and not quiet:
            print("interrupted: this is the best so far", file=sys.stderr)
        if found.reason:
            print(f"the network is written as it is: {found.reason}", file=sys.stderr)
        metric = job.metric
        seen = None if metric is None else (_measured(metric, job.net), _measured(metric, found.net))
    bytes_ = pack(found.net, out, signed_zeros=signed_zeros)
    print(f"{out}: {exact(bytes_)} bytes; {float_bytes(job.net) / bytes_:.1f} times smaller than in memory")
    print(f"loss {found.base_loss:.5f} -> {found.loss:.5f} (bound {found.base_loss + increase:.5f})")
    if seen is not None:
        print(f"metric {seen[0]:.6g} -> {seen[1]:.6g}")
    return 0


def _compressed(job: Job, increase: float, compressor: Compressor, lr: float, quiet: bool) -> Compressed:
    loss = job.loss or cross_entropy
    with (
        CompressProgress(f"compressing {printable(job.name)}", not quiet) as progress,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "compress: .* comes back as it was given")  # in a line of its own
        seed_all(0)
        return compress(
            job.net,
            job.batches,
            loss,
            max_loss_increase=increase,
            compressor=compressor,
            validate=job.validate,
            training=Training.over(loss, job.batches, lr, progress.trained),
            watch=progress.offered,
        )


@torch.no_grad()
def _measured(metric: Metric, net: nn.Module) -> float:
    seed_all(0)
    return measured(metric, net)
