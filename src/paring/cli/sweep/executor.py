"""Executors: independent jobs, done one after another, in processes of their own, or by Ray; an outcome for each.

An executor is a value; `run` opens a crew (what really does the work), hands it at most `workers` jobs at a time, tries a
failed one again, and yields one outcome per job as it ends. However `run` is left (done, Ctrl-C, `close()`), the crew is
stopped first.
"""

from __future__ import annotations

import pickle
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, final


@dataclass(frozen=True)
class Job:
    """A call to be made somewhere.

    Args:
        name: tells it from the other jobs.
        call: an importable function.
        args: its arguments; they, and what it returns, are pickled unless the job is done in this process.
    """

    name: str
    call: Callable[..., Any]
    args: tuple[Any, ...] = ()

    def packed(self) -> bytes:
        """The call, to be sent elsewhere.

        Raises:
            TypeError: it cannot be pickled.
        """
        try:
            return pickle.dumps((self.call, self.args))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(f"job {self.name!r} cannot be sent to another process: {error}") from error


@dataclass(frozen=True)
class Reply:
    """How one attempt at a job ended: a value, or one line of what went wrong and its traceback."""

    value: Any = None
    error: str | None = None
    trace: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a job ended, after its last attempt.

    Attributes:
        job: its name.
        value: what the call returned; None after an error.
        error: one line of what went wrong; None when it worked.
        trace: the traceback, as far as there is one (a killed process leaves none).
        attempts: how often it was tried.
        seconds: wall-clock time of the last attempt.
    """

    job: str
    value: Any = None
    error: str | None = None
    trace: str = ""
    attempts: int = 1
    seconds: float = 0.0


def attempt(call: Callable[..., Any], args: tuple[Any, ...]) -> Reply:
    """Make the call; whatever it raises becomes the reply."""
    try:
        return Reply(call(*args))
    except Exception as error:
        return Reply(None, told(error), traceback.format_exc())


def perform(packed: bytes) -> Reply:
    """Make a call from `Job.packed`, with one torch thread, in this process, which is a worker's."""
    import torch

    torch.set_num_threads(1)
    return attempt(_perform, (packed,))


def _perform(packed: bytes) -> Any:
    call, args = pickle.loads(packed)
    return call(*args)


def told(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Crew(ABC):
    """What does the jobs of one `Executor.run`."""

    @abstractmethod
    def start(self, job: Job) -> None:
        """Begin an attempt."""

    @abstractmethod
    def wait(self) -> list[tuple[str, Reply]]:
        """Block until attempts have ended, and say how; called only while some are going."""


@dataclass(frozen=True)
class Executor(ABC):
    """Runs independent jobs.

    Args:
        workers: jobs at a time.
        retries: how often a failed job is tried again before it is reported.

    Raises:
        ValueError: a number out of its range.
    """

    workers: int = 1
    retries: int = 1

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("retries", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{type(self).__name__}({name}={value!r}): a whole number, at least {least}")

    @abstractmethod
    def crew(self) -> AbstractContextManager[Crew]:
        """What does the work; on leaving, everything that still runs is stopped."""

    def run(self, jobs: Iterable[Job]) -> Generator[Outcome, None, None]:
        """Do the jobs and yield an outcome for each as it ends; a failed job goes to the end of the queue once more.

        Raises:
            ValueError: two jobs of the same name.
            TypeError: a job that cannot be sent to where it should be done.
        """
        waiting = deque((job, 1) for job in jobs)
        if len({job.name for job, _ in waiting}) < len(waiting):
            raise ValueError("two jobs have the same name; outcomes are told apart by it")
        if not waiting:
            return
        running: dict[str, tuple[Job, int, float]] = {}
        ended: list[Outcome] = []
        with self.crew() as crew:
            while waiting or running or ended:
                while waiting and len(running) < self.workers:
                    job, number = waiting.popleft()
                    crew.start(job)
                    running[job.name] = job, number, time.perf_counter()
                yield from ended
                ended = []
                for name, reply in crew.wait() if running else ():
                    job, number, began = running.pop(name)
                    if reply.error is not None and number <= self.retries:
                        waiting.append((job, number + 1))
                        continue
                    seconds = time.perf_counter() - began
                    ended.append(Outcome(name, reply.value, reply.error, reply.trace, number, seconds))


@final
@dataclass(frozen=True)
class Serial(Executor):
    """One job after another, in this process."""

    workers: int = field(default=1, init=False)

    @contextmanager
    def crew(self) -> Iterator[Crew]:
        yield _Here()


class _Here(Crew):
    def __init__(self) -> None:
        self._job: Job | None = None

    def start(self, job: Job) -> None:
        self._job = job

    def wait(self) -> list[tuple[str, Reply]]:
        assert self._job is not None
        return [(self._job.name, attempt(self._job.call, self._job.args))]
