"""What every script shares: exit codes, one-line errors, and the flags they have in common."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen_vl_axera.contract import KV_CACHE_LEN, LANGUAGE_DTYPES, MAX_NEW_TOKENS, NUM_FRAMES, PREFILL_LEN, PROMPTS
from qwen_vl_axera.errors import CheckFailed, InputError

EXIT_OK, EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 130, 143


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


def add_video(arguments: argparse.ArgumentParser, default: str) -> None:
    arguments.add_argument(
        "--video",
        nargs="+",
        type=Path,
        metavar="PATH",
        help=f"a video file, a directory of frames, or pictures (default: {default})",
    )
    arguments.add_argument(
        "--num-frames", type=int, metavar="N", help=f"of a file, evenly spaced (default: {NUM_FRAMES})"
    )
    arguments.add_argument(
        "--fps",
        type=float,
        metavar="F",
        help="of a file: sample at this rate; of frames: their rate (default: 1)",
    )


def add_text(arguments: argparse.ArgumentParser, prompts: int) -> None:
    """The flags of text generation; `prompts` of the documented questions are the default."""
    default = list(PROMPTS[:prompts])
    arguments.add_argument(
        "--prompt", nargs="+", default=default, metavar="T", help=f"questions (default: {' '.join(default)})"
    )
    arguments.add_argument(
        "--max-new-tokens", type=positive, default=MAX_NEW_TOKENS, metavar="N", help="default: %(default)s"
    )
    arguments.add_argument("--dtype", choices=LANGUAGE_DTYPES, default=LANGUAGE_DTYPES[0], help="of the language model")
    arguments.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: CUDA when it is there)")


def add_lengths(arguments: argparse.ArgumentParser) -> None:
    """How long a prompt and a conversation may be: what `pulsar2 llm_build` fixes and preflight.py checks."""
    arguments.add_argument(
        "--prefill-len", type=positive, default=PREFILL_LEN, metavar="N", help="default: %(default)s"
    )
    arguments.add_argument(
        "--kv-cache-len", type=positive, default=KV_CACHE_LEN, metavar="N", help="default: %(default)s"
    )
    arguments.add_argument(
        "--last-kv-cache-len",
        type=positive,
        nargs="+",
        action="extend",
        default=[],
        metavar="N",
        help="how much of the cache each prefill group sees: prefill in chunks of --prefill-len",
    )


def positive(text: str) -> int:
    """An argparse type: an integer above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {value}")
    return value


def device(args: argparse.Namespace) -> str:
    """The torch device to use.

    Raises:
        InputError: the one asked for is not there.
    """
    import torch

    if args.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(1, device=args.device).is_meta:
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {args.device}: {str(error).splitlines()[0]}") from None
    return args.device


def existing_workdir(workdir: Path) -> Path:
    """The work directory, made when it is not there yet.

    Raises:
        InputError: something that is not a directory stands in its place.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir}: expected a directory, found a file")
    workdir.mkdir(parents=True, exist_ok=True)
    return workdir


class _Terminated(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that temporary files go and children end."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def made_workdir(workdir: Path, made_by: str) -> Path:
    """The work directory of a script that only reads what others made.

    Raises:
        InputError: there is none: a mistyped one is not made.
    """
    if not workdir.is_dir():
        raise InputError(f"--workdir {workdir}: no such directory; expected the one that {made_by} wrote to")
    return workdir


def warn(message: str | None) -> None:
    """Prints a warning on stderr, where there is one."""
    if message:
        print(f"warning: {message}", file=sys.stderr)


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Runs a script's `main` and turns what it raises into the exit codes of the design.

    Args:
        main: takes the arguments (None: those of the process) and returns an exit code.

    Returns:
        0 done, 1 a check failed, 2 bad input or an unusable file, 130 interrupted, 143 ended by SIGTERM.
    """
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
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
    except _Terminated:
        print("ended by SIGTERM; nothing half-written was left behind", file=sys.stderr)
        return EXIT_TERMINATED
    except BrokenPipeError:
        # The reader (head, less) has gone; Python must not complain again while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", EXIT_BAD_INPUT)


def _fail(message: object, code: int) -> int:
    # One line, but spaces within it as they are: they may belong to a path.
    lines = [line.strip() for line in str(message).splitlines()]
    print(f"error: {' '.join(line for line in lines if line)}", file=sys.stderr)
    return code
