"""Sweeps: the same rows by every executor, whatever fails, is killed, interrupted, or shared with another sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cli import sweep_trials as work
from paring.cli.results import load
from paring.cli.sweep import Executor, Job, Outcome, Processes, Ray, Serial, run_trials, sweep
from tests import forked


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """What every process here is a copy of has captured a network already."""
    forked.context()


TIMES = ("train_seconds", "train_cpu_seconds", "finish_seconds")
LAST = 2 * work.STEPS


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMES}


def steps(log: Path) -> dict[int, list[int]]:
    """Per tag, the steps in the order in which they were done."""
    found: dict[int, list[int]] = {}
    for line in log.read_text().splitlines():
        tag, step, _ = map(int, line.split())
        found.setdefault(tag, []).append(step)
    return found


def until(condition: Callable[[], Any], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether no process of this id runs any more (one that nobody has waited for yet does not run)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def jobs(folder: Path) -> list[Job]:
    return [
        Job("double", work.double, (21,)),
        Job("first", work.fails_first, (folder / "failed",)),
        Job("never", work.fails, ("of no use",)),
    ]


def check_jobs(outcomes: dict[str, Outcome]) -> None:
    """Outcomes of `jobs`."""
    assert (outcomes["double"].value, outcomes["double"].attempts) == (42, 1)
    assert (outcomes["first"].value, outcomes["first"].attempts, outcomes["first"].error) == ("worked", 2, None)
    never = outcomes["never"]
    assert (never.value, never.attempts, never.error) == (None, 2, "ValueError: of no use")
    assert "raise ValueError(text)\nValueError: of no use" in never.trace
    assert all(outcome.seconds >= 0 for outcome in outcomes.values())


def run(executor: Executor, given: list[Job]) -> dict[str, Outcome]:
    found = list(executor.run(given))
    assert sorted(outcome.job for outcome in found) == sorted(job.name for job in given), "one outcome each"
    return {outcome.job: outcome for outcome in found}


# --- executors ------------------------------------------------------------------------------------------------------


def test_serial(tmp_path: Path) -> None:
    check_jobs(run(Serial(), jobs(tmp_path)))
    one = run(Serial(retries=0), [Job("first", work.fails_first, (tmp_path / "again",))])["first"]
    assert (one.error, one.attempts) == ("OSError: not yet there", 1), "the reason is one line"
    order = [outcome.job for outcome in Serial().run(jobs(tmp_path))]
    assert order == ["double", "first", "never"]
    assert list(Serial().run([])) == []


@pytest.mark.slow
def test_processes(tmp_path: Path) -> None:
    given = [*jobs(tmp_path), Job("killed", work.killed_first, (tmp_path / "killed",))]
    found = run(Processes(2), given)
    check_jobs(found)
    assert (found["killed"].value, found["killed"].attempts) == ("lived, threads: 1", 2)


@pytest.mark.slow
def test_processes_that_end_without_a_result(tmp_path: Path) -> None:
    given = [
        Job("killed", work.killed_first, (tmp_path / "killed",)),
        Job("left", work.leaves, (3,)),
        Job("unsent", work.cannot_be_sent),
    ]
    found = run(Processes(3, retries=0), given)
    assert found["killed"].error == "its process was ended by SIGKILL (as the system does when memory runs out)"
    assert found["left"].error == "its process ended with status 3 before the job was done"
    assert "what it returned cannot be sent back" in str(found["unsent"].error)


@pytest.mark.slow
def test_leaving_a_run_stops_its_processes(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    given = [Job("waits", work.waits, (marker,)), Job("double", work.double, (1,))]
    with closing(Processes(2).run(given)) as outcomes:
        assert next(outcomes).job == "double"
        until(lambda: marker.exists() and marker.read_text())
        pid = int(marker.read_text())
        assert not gone(pid)
    assert gone(pid)


def test_refused() -> None:
    for wrong in (
        lambda: Processes(0),
        lambda: Serial(retries=-1),
        lambda: Ray(2, retries=True),
        lambda: Ray(gpus=1.5),
    ):
        with pytest.raises(ValueError, match=r"(workers|retries|gpus)="):
            wrong()
    with pytest.raises(ValueError, match="two jobs have the same name"):
        list(Serial().run([Job("a", work.double, (1,)), Job("a", work.double, (2,))]))
    with pytest.raises(TypeError, match="job 'a' cannot be sent to another process"):
        list(Processes().run([Job("a", lambda: 1)]))


# --- trials ---------------------------------------------------------------------------------------------------------


def check_trials(executor: Executor, folder: Path) -> None:
    """Two trials, one of them killed in its second epoch, against the same trials one after another."""
    log, die = folder / "log", folder / "die"
    grid = [work.logged(log, 0), work.logged(log, 1, die=die)]
    die.touch()
    straight = {one.key: outcome for one, outcome in run_trials(grid, Serial(), folder / "straight")}
    die.unlink()
    log.unlink()
    found = {one.key: outcome for one, outcome in run_trials(grid, executor, folder / "runs")}
    assert [found[one.key].error for one in grid] == [None, None]
    for one in grid:
        assert timeless(found[one.key].value) == timeless(straight[one.key].value)
        assert found[one.key].value == one.result(folder / "runs")
    assert [found[one.key].attempts for one in grid] == [1, 2]
    once, resumed = steps(log)[0], steps(log)[1]
    assert once == list(range(1, LAST + 1))
    assert resumed == [*range(1, work.STEPS + 5), *range(work.STEPS + 1, LAST + 1)], "from its checkpoint"


@pytest.mark.slow
def test_trials_in_processes_one_killed(tmp_path: Path) -> None:
    check_trials(Processes(2), tmp_path)


@contextmanager
def copied(root: Path, count: int, name: str) -> Iterator[forked.Child]:
    """A sweep in a process that starts at once, as do its workers: they come from where it comes from."""
    script = 'from cli.sweep_trials import main\nif __name__ == "__main__":\n    main()'
    child = forked.Child(script, root, str(root), str(count), name)
    try:
        yield child
    finally:
        child.kill()


@contextmanager
def started(root: Path, count: int, name: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep in a program of its own, killed with all it started if the test fails."""
    paths = [str(Path(work.__file__).parents[1]), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", "from cli.sweep_trials import main; main()", str(root), str(count), name],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_stopped_sweep_goes_on(how: str, tmp_path: Path) -> None:
    count, log = 4, tmp_path / "log"  # enough that some are left whenever the signal arrives
    grid = [work.logged(log, tag, pause=0.05) for tag in range(count)]
    if how == "killed":
        with copied(tmp_path, count, "grid") as child:
            until(lambda: list(tmp_path.glob("runs/*/result.json")))
            os.kill(child.pid, signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
    else:
        with started(tmp_path, count, "grid") as process:
            until(lambda: list(tmp_path.glob("runs/*/result.json")))
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            told = process.communicate()[1]
            assert process.returncode == -signal.SIGINT
        assert told.count("Traceback") == 1, "the workers say nothing"
    workers = {int(line.split()[2]) for line in log.read_text().splitlines()}
    until(lambda: all(map(gone, workers)))
    finished = {one.key: one.result(tmp_path / "runs") for one in grid if one.result(tmp_path / "runs")}
    assert 1 <= len(finished) < count
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    swept = sweep(grid, runs=tmp_path / "runs", path=tmp_path / "grid.json", progress=False)
    assert swept.failures == ()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    counts = {tag: Counter(done) for tag, done in steps(log).items()}
    done = {tag for tag, one in enumerate(grid) if one.key in finished}
    for tag in range(count):
        assert set(counts[tag]) == set(range(1, LAST + 1)), "every step of every trial"
        # A trial that was stopped takes up its last checkpoint: some steps twice, none a third time.
        assert set(counts[tag].values()) <= ({1} if tag in done else {1, 2}), "no finished trial is done again"
    assert sorted(row["run"] for row in swept.results.rows) == sorted(one.key for one in grid)
    if how == "killed":
        straight = sweep(grid, runs=tmp_path / "straight", path=tmp_path / "straight.json", progress=False)
        by_key = {row["run"]: timeless(row) for row in straight.results.rows}
        assert all(timeless(row) == by_key[row["run"]] for row in swept.results.rows)


@pytest.mark.slow
def test_two_sweeps_share_their_runs(tmp_path: Path) -> None:
    count, log = 3, tmp_path / "log"
    grid = [work.logged(log, tag, pause=0.05) for tag in range(count)]
    with copied(tmp_path, count, "theirs") as child:
        until(lambda: log.exists() and log.read_text())
        swept = sweep(grid, runs=tmp_path / "runs", path=tmp_path / "ours.json", progress=False)
        assert child.wait() == 0, child.said()
    assert swept.failures == ()
    assert all(done == list(range(1, LAST + 1)) for done in steps(log).values()), "every step once"
    theirs = {row["run"]: row for row in load(tmp_path / "theirs.json").rows}
    assert theirs == {row["run"]: row for row in swept.results.rows}
    assert len(theirs) == count


# --- ray ------------------------------------------------------------------------------------------------------------


# Ray leaves a process object behind when it has to be started a second time, on a computer that is too busy for the first.
on_ray = pytest.mark.filterwarnings("ignore:subprocess [0-9]+ is still running:ResourceWarning")


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    """An executor whose session stays open."""
    module = pytest.importorskip("ray")
    executor = Ray(2)
    with executor.session():
        yield executor
    assert not module.is_initialized(), "who starts it stops it"


@on_ray
@pytest.mark.slow
def test_ray(ray: Ray, tmp_path: Path) -> None:
    """Jobs that end well or raise, and one that is killed; the next test has one that is tried again after that."""
    check_jobs(run(ray, jobs(tmp_path)))
    given = [Job("killed", work.killed_first, (tmp_path / "killed",))]
    once = run(Ray(2, retries=0), given)["killed"]
    assert once.error == "its Ray worker died, as when it is killed or memory runs out"
    assert run(ray, given)["killed"].value == "lived, threads: 1"


@on_ray
@pytest.mark.slow
def test_trials_on_ray_one_killed(ray: Ray, tmp_path: Path) -> None:
    check_trials(ray, tmp_path)


@on_ray
@pytest.mark.slow
def test_leaving_a_run_stops_its_tasks(ray: Ray, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    given = [Job("waits", work.waits, (marker,)), Job("double", work.double, (1,))]
    with closing(ray.run(given)) as outcomes:
        assert next(outcomes).job == "double"
        until(lambda: marker.exists() and marker.read_text())
    until(lambda: gone(int(marker.read_text())))
    with pytest.raises(RuntimeError, match="each job needs 1 CPU and 64 GPUs; Ray has 2 and"):
        list(Ray(2, gpus=64).run(given))


class _FakeRay:
    """Stands for the library where its start is tested; `fail` is how often that goes wrong."""

    def __init__(self, fail: int) -> None:
        self.fail, self.inits, self.downs, self.up = fail, [], 0, False

    def is_initialized(self) -> bool:
        return self.up

    def init(self, address: str, **options: Any) -> None:
        self.inits.append((address, options.get("num_cpus")))
        if len(self.inits) <= self.fail:
            raise ConnectionError("nobody is there")
        self.up = True

    def shutdown(self) -> None:
        self.downs, self.up = self.downs + 1, False


def test_ray_is_started_again_when_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _FakeRay(fail=2)
    monkeypatch.setattr("paring.cli.sweep.cluster._ray", lambda: fake)
    with Ray(3).session():
        assert fake.inits == [("local", 3)] * 3
        with Ray(5, address="auto").session():
            assert len(fake.inits) == 3, "a session that is there is used"
        assert fake.up
    assert not fake.up
    fake = _FakeRay(fail=9)
    with (
        pytest.raises(RuntimeError, match=r"did not start here, tried 3 times .*nobody is there.*--executor processes"),
        Ray().session(),
    ):
        pass
    fake = _FakeRay(fail=9)
    with (
        pytest.raises(ConnectionError, match=r"no Ray cluster answers at '10\.0\.0\.1:6379' .*ray start --head"),
        Ray(address="10.0.0.1:6379").session(),
    ):
        pass
    assert fake.inits == [("10.0.0.1:6379", None)]
    assert fake.downs == 1


def test_without_its_extra_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"needs the extra 'sweep': pip install 'paring\[sweep\]'"):
        list(Ray().run([Job("a", work.double, (1,))]))
