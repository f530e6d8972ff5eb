"""Run a script in several processes that form one gloo group."""

from __future__ import annotations

from pathlib import Path

from tests.forked import Child


def together(script: Path | str, folder: Path, *, processes: int = 2, timeout: float = 600) -> list[str]:
    """Run `script RANK MEETING` in every process and return what each printed; all have to end well.

    Args:
        script: a file, or the text of one.
        folder: an empty folder of one's own.
        processes: how many.
        timeout: seconds.
    """
    environment = {"GLOO_SOCKET_IFNAME": "lo"}
    meeting = str(folder / "meeting")
    children = [Child(script, folder, str(rank), meeting, environment=environment) for rank in range(processes)]
    try:
        codes = [child.wait(timeout) for child in children]
        said = [child.said() for child in children]
    finally:
        for child in children:
            child.kill()
    assert codes == [0] * processes, "\n".join(said)
    return said
