"""Imported by the process that the children of tests are copies of: what takes seconds in every fresh process.

That is importing torch and paring, and the first capture of a network; further ones of its structure are shared.
"""

from __future__ import annotations

import gc

import torch
import torch.distributed.fsdp
from torch import nn

import paring as pr
from tests.captures import share

torch.set_num_threads(1)
_net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
pr.attach(_net, pr.GMP(density=0.5), torch.ones(2, 3), steps=1).finish(early=True)
share()
del _net
gc.collect()
gc.freeze()  # as in the tests themselves: collections in the copies look at what is new
