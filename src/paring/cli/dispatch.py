"""From the words of a command line to one subcommand, with every failure as one clear line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from paring.cli.command import Command, CommandError
from paring.cli.meant import meant


def dispatch(prog: str, words: Sequence[str], commands: Mapping[str, Command], overview: str) -> int:
    """Run one of the commands; returns the exit status: 0 done, 1 failed, 2 the command line was wrong, 130 interrupted.

    overview: the text of `--help`, with `{commands}` where their list goes.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, commands))
        lines = "\n".join(f"  {name:<{width}} {command.about}" for name, command in commands.items())
        print(overview.format(commands=lines))
        return 0
    if words[0] not in commands:
        print(
            f"{prog}: there is no command {words[0]!r}; {meant(words[0], commands)}choose one of {', '.join(commands)}",
            file=sys.stderr,
        )
        return 2
    return _guarded(prog, words[0], commands[words[0]], words[1:])


def _guarded(prog: str, name: str, command: Command, words: Sequence[str]) -> int:
    from paring.core.printable import printable_lines  # with torch, which the overview does without

    def say(text: object) -> None:
        print(f"{prog} {name}: {printable_lines(str(text))}", file=sys.stderr)

    try:
        with _warnings_in_a_line(f"{prog} {name}"):
            status = command.run(words)
        sys.stdout.flush()
        return status
    except CommandError as error:
        say(error)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough (paring ... | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        say(f"{error}; check what is there and who may use it, or give another path")
        return 1
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        say(error)
        return 1
    except KeyboardInterrupt:
        print(f"\n{prog} {name}: interrupted; {command.resumes}", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("PARING_DEBUG"):
            raise
        say(f"{BUG}: {type(error).__name__}: {error}. PARING_DEBUG=1 shows where; please report it")
        return 1


BUG = "this is a fault of paring's own"


@contextmanager
def _warnings_in_a_line(name: str) -> Iterator[None]:
    """Meanwhile what was asked and not done is told without the line of code that says it."""
    from paring.core import ParingWarning
    from paring.core.printable import printable_lines

    before = warnings.formatwarning

    def line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, ParingWarning):
            return f"{name}: {printable_lines(str(message))}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = before
