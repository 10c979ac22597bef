"""What every script shares: exit codes, one-line errors, and the flags they have in common."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen_vl_axera.errors import CheckFailed, InputError

EXIT_OK, EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """argparse prints the whole usage before an error; here one line is enough."""

    def error(self, message: str):
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message} (--help lists the flags)\n")


def parser(doc: str) -> argparse.ArgumentParser:
    """An argument parser whose `--help` shows a script's own docstring.

    Args:
        doc: the script's `__doc__`; kept line by line, since it holds the exact command.
    """
    return _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_checkpoint(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("ckpt", metavar="CKPT", type=Path, help="directory of a Qwen2.5-VL checkpoint")


def add_workdir(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument(
        "--workdir",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="what the steps hand each other (default: the current directory)",
    )


def existing_workdir(workdir: Path) -> Path:
    """The work directory, made when it is not there yet.

    Raises:
        InputError: something that is not a directory stands in its place.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir}: expected a directory, found a file")
    workdir.mkdir(parents=True, exist_ok=True)
    return workdir


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Runs a script's `main` and turns what it raises into the exit codes of the design.

    Args:
        main: takes the arguments (None: those of the process) and returns an exit code.

    Returns:
        0 done, 1 a check failed, 2 bad input or an unusable file, 130 interrupted.
    """
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except InputError as error:
        return _fail(error, EXIT_BAD_INPUT)
    except CheckFailed as error:
        return _fail(error, EXIT_CHECK_FAILED)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing half-written was left behind", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; Python must not complain again while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", EXIT_BAD_INPUT)


def _fail(message: object, code: int) -> int:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return code
