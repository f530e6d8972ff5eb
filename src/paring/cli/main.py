"""The `paring` command. Every subcommand is a frozen dataclass read by tyro; the methods and the recipe are the API's own."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from paring.cli.command import CommandError
from paring.cli.commands import COMMANDS
from paring.core import ParingWarning
from paring.core.printable import printable_lines

_TOP = """paring: train networks that come out small

usage: paring COMMAND [OPTIONS]        paring COMMAND --help teaches each command

{commands}

examples:
  paring demo
  paring train --model lenet_300_100 --data mnist --method l0 --at inputs --price 1.7e-6 --epochs 20
  paring train --model lenet5 --data mnist --method l0 --at units:Conv2d inputs:Linear --price budget:macs=0.25
  paring sweep --method gmp --vary density=0.5,0.2,0.1 seed=0,1,2 --workers 2
  paring report runs/demo
  paring table louizos2018-mnist --seeds 3
"""


_RESUMES = dict.fromkeys(("train", "table"), "the same command goes on from the last checkpoint")
_RESUMES["sweep"] = "the same command goes on: finished trials are kept, stopped ones go on from their last epoch"
_RESUMES["bench"] = "the same command goes on with what is missing"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 the command line was wrong, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] == "--version":
        from paring import __version__

        print(f"paring {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        lines = "\n".join(f"  {name:<8} {command.about}" for name, command in COMMANDS.items())
        print(_TOP.format(commands=lines))
        return 0
    if words[0] not in COMMANDS:
        print(f"paring: there is no command {words[0]!r}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _guarded(words[0], COMMANDS[words[0]].run, words[1:])


def _guarded(name: str, run: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    def say(text: object) -> None:
        print(f"paring {name}: {printable_lines(str(text))}", file=sys.stderr)

    try:
        with _warnings_in_a_line(name):
            status = run(words)
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
        print(f"\nparing {name}: interrupted; {_RESUMES.get(name, 'run it again')}", file=sys.stderr)
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
    before = warnings.formatwarning

    def line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, ParingWarning):
            return f"paring {name}: {printable_lines(str(message))}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = before


if __name__ == "__main__":
    sys.exit(main())
