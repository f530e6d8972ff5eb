"""Jobs in processes of their own: a process that is killed costs one attempt of one job and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, final

from paring.cli.sweep.executor import Crew, Executor, Job, Reply, perform, told

_IMPORTED = ["paring.cli.experiment"]  # by the process that all others are copies of: torch takes seconds
_LEAVE = 10.0  # seconds that a process has to end after its reply


@final
@dataclass(frozen=True)
class Processes(Executor):
    """A process of its own for every job, with one torch thread each.

    On Linux it is a copy of one that has imported paring and done nothing else, elsewhere a fresh one.

    A script that runs jobs this way does so under `if __name__ == "__main__":`, as each process imports it again.
    """

    workers: int = 2

    @contextmanager
    def crew(self) -> Iterator[Crew]:
        crew = _Spawned()
        try:
            yield crew
        finally:
            crew.stop()


class _Spawned(Crew):
    def __init__(self) -> None:
        # elsewhere system libraries may have threads at once, which a copy of a process lacks
        self._context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        self._context.set_forkserver_preload(_IMPORTED)
        self._running: dict[str, tuple[BaseProcess, Connection]] = {}

    def start(self, job: Job) -> None:
        packed = job.packed()
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(sender, packed, dict(os.environ)), name=job.name)
        with sender, _without_interrupts():
            process.start()
        self._running[job.name] = process, receiver

    def wait(self) -> list[tuple[str, Reply]]:
        ready = wait([receiver for _, receiver in self._running.values()])
        return [(name, self._reply(name)) for name, (_, receiver) in list(self._running.items()) if receiver in ready]

    def _reply(self, name: str) -> Reply:
        process, receiver = self._running[name]
        try:
            reply = receiver.recv()
        except (EOFError, OSError):
            reply = None
        process.join(_LEAVE)
        if process.is_alive():
            process.kill()
            process.join()
        code = process.exitcode
        process.close()
        receiver.close()
        del self._running[name]
        return reply if isinstance(reply, Reply) else Reply(error=_died(code))

    def stop(self) -> None:
        for process, _ in self._running.values():
            process.kill()
        for process, receiver in self._running.values():
            process.join()
            process.close()
            receiver.close()
        self._running.clear()


def _died(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (as the system does when memory runs out)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {code} before the job was done"


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started in here never see the terminal's Ctrl-C: who started them stops them."""
    resource_tracker.ensure_running()  # starting it would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(sender: Connection, packed: bytes, environment: Mapping[str, str]) -> None:
    """What a process does: the job, in today's environment (a copied process has an older one), and its reply."""
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_follow, daemon=True).start()
    reply = perform(packed)
    try:
        sender.send(reply)
    except Exception as error:
        sender.send(Reply(error=f"what it returned cannot be sent back: {told(error)}"))


def _follow() -> None:
    """End this process when the one that started it is gone, also when that one was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
