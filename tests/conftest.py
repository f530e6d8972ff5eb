"""Shared test settings: one thread for steady results, and local copies of the public data sets when they are there."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one here, and in the processes that tests start

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.missing import missing_extra

_NEARBY = Path(__file__).resolve().parents[2] / "shared" / "data"
if "PARING_DATA" not in os.environ and _NEARBY.is_dir():
    os.environ["PARING_DATA"] = str(_NEARBY)

torch.set_num_threads(1)  # the networks here are small: more threads only wait for each other
settings.register_profile(
    "paring", deadline=None, max_examples=30, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("paring")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """What a test file draws while it is imported is the same in every run; torch's own first seed is not."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """So is what a fixture of a file or of the session draws, whichever test comes first and asks for it."""
    if fixturedef.scope != "function":
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _steady() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def _known_captures() -> Any:
    from tests.captures import Shared

    return Shared(sys.modules["paring.analysis.capture"]._export)


@pytest.fixture(autouse=True)
def _shared_captures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one structure are captured once (`tests/captures.py`), where tests are not about captures."""
    about_captures = Path(__file__).parent / "analysis" in request.path.parents
    if not about_captures and "paring.analysis.capture" in sys.modules:
        known = request.getfixturevalue("_known_captures")
        monkeypatch.setattr(sys.modules["paring.analysis.capture"], "_export", known)


@pytest.fixture(scope="session")
def _known_charts() -> Any:
    from tests.charts import Drawn

    return Drawn(sys.modules["paring.cli.plots"]._chart)


@pytest.fixture(autouse=True)
def _shared_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts of the same input are drawn once (`tests/charts.py`), where tests are not about charts."""
    if request.path.name != "test_page.py" and "paring.cli.plots" in sys.modules:
        monkeypatch.setattr(sys.modules["paring.cli.plots"], "_chart", request.getfixturevalue("_known_charts"))


def pytest_collection_finish() -> None:
    """Leave what is imported by now, half a million objects, out of garbage collections: each would take half a second.

    Captures that tests share are many objects as well, so that what has survived for long is looked at more rarely.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 50)


def _again_or_skip(error: Exception, module: bool = False) -> NoReturn:
    """Skip for an extra that is not installed; else fail as before."""
    if reason := missing_extra(error):
        pytest.skip(reason, allow_module_level=module)
    raise error


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    collect = collector.collect

    def checked() -> Iterable[Any]:
        try:
            return list(collect())
        except Exception as error:
            _again_or_skip(error, module=True)

    collector.collect = checked  # type: ignore[method-assign]
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    try:
        return (yield)
    except Exception as error:
        _again_or_skip(error)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    try:
        return (yield)
    except Exception as error:
        _again_or_skip(error)
