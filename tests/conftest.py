"""Shared test settings: one thread for steady results, and local copies of the public data sets when they are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

_NEARBY = Path(__file__).resolve().parents[2] / "shared" / "data"
if "PARING_DATA" not in os.environ and _NEARBY.is_dir():
    os.environ["PARING_DATA"] = str(_NEARBY)

torch.set_num_threads(1)  # the networks here are small: more threads only wait for each other
settings.register_profile(
    "paring", deadline=None, max_examples=30, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("paring")


@pytest.fixture(autouse=True)
def _steady() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
