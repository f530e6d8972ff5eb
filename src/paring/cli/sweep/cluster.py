"""Jobs done by Ray: on this computer, or on a cluster."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

from paring.cli.sweep.executor import Crew, Executor, Job, Reply, told

_STARTS = 3  # its processes must find each other within a fixed time, which a very busy computer can miss
_STORE = 80 * 2**20  # bytes; results are small


@final
@dataclass(frozen=True)
class Ray(Executor):
    """Jobs as Ray tasks: one CPU and one torch thread each.

    If the program is connected to Ray already, that session is used. Otherwise one is opened for the run: a cluster's,
    given its address; without one, Ray is started on this computer with as many CPUs as workers, and stopped in the end.
    On a cluster, paths mean the same file system on every node, and `PARING_DATA` is set there.

    Args:
        workers: tasks at a time.
        address: of a running cluster: "auto", "10.0.0.1:6379", "ray://10.0.0.1:10001".
        gpus: GPUs that each task takes; 0.5 lets two share one.

    Raises:
        ValueError: a number out of its range.
    """

    workers: int = 2
    address: str = ""
    gpus: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.gpus <= 1 or (self.gpus > 1 and self.gpus == int(self.gpus))):
            raise ValueError(f"Ray(gpus={self.gpus}): a fraction of a GPU, or a whole number of GPUs")

    @contextmanager
    def session(self) -> Iterator[Any]:
        """Ray, connected; runs inside of it share it.

        Raises:
            ImportError: the extra `sweep` is not installed.
            ConnectionError: no cluster answers at the address.
            RuntimeError: Ray does not start here, or has not what a job needs.
        """
        ray = _ray()
        if ray.is_initialized():
            yield ray
            return
        try:
            self._connect(ray)
            yield ray
        finally:
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self.address:
            try:
                ray.init(address=self.address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConnectionError(
                    f"no Ray cluster answers at {self.address!r} ({told(error)}); start one with `ray start --head`, or "
                    "leave the address out to start Ray here"
                ) from error
            return
        for number in range(1, _STARTS + 1):
            try:
                ray.init("local", num_cpus=self.workers, include_dashboard=False, object_store_memory=_STORE, **quiet)
                return
            except Exception as error:  # Ray has no exception of its own for this
                ray.shutdown()
                if number == _STARTS:
                    raise RuntimeError(
                        f"Ray did not start here, tried {number} times ({told(error)}); its logs are in "
                        "ray/session_latest/logs of the temporary folder. If the computer is very busy, try again later, or do without Ray: "
                        "--executor processes, or Processes(workers) in Python"
                    ) from error

    @contextmanager
    def crew(self) -> Iterator[Crew]:
        with self.session() as ray:
            there = ray.cluster_resources()
            if there.get("CPU", 0) < 1 or there.get("GPU", 0) < self.gpus:
                raise RuntimeError(
                    f"each job needs 1 CPU and {self.gpus:g} GPUs; Ray has {there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
                )
            crew = _Tasks(ray, self.gpus)
            try:
                yield crew
            finally:
                crew.stop()


def _ray() -> Any:
    """The library. What it would tell its makers about its use is switched off, unless the environment says otherwise."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a job that asks for no GPU may still see one
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError("running on Ray needs the extra 'sweep': pip install 'paring[sweep]'") from error


class _Tasks(Crew):
    def __init__(self, ray: Any, gpus: float) -> None:
        self._ray = ray
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_task())
        self._running: dict[Any, str] = {}

    def start(self, job: Job) -> None:
        self._running[self._task.remote(job.packed(), sys.path)] = job.name

    def wait(self) -> list[tuple[str, Reply]]:
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        return [(self._running.pop(task), self._reply(task)) for task in ready]

    def _reply(self, task: Any) -> Reply:
        try:
            reply = self._ray.get(task)
        except self._ray.exceptions.WorkerCrashedError as error:
            return Reply(error="its Ray worker died, as when it is killed or memory runs out", trace=str(error))
        except self._ray.exceptions.RayError as error:
            return Reply(error=told(error), trace=str(error))
        return (
            reply if isinstance(reply, Reply) else Reply(error=f"its Ray worker sent {type(reply).__name__}, no reply")
        )

    def stop(self) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running.clear()


def _task() -> Any:
    """What a worker runs. Being no function of a module, it is sent as it is and finds the modules along our path."""

    def task(packed: bytes, path: list[str]) -> Any:
        import sys

        sys.path += [entry for entry in path if entry not in sys.path]
        from paring.cli.sweep.executor import perform

        return perform(packed)

    return task
