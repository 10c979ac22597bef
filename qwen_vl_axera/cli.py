"""What every script shares: exit codes, one-line errors, and the flags they have in common."""

import argparse
import fcntl
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

from qwen_vl_axera import progress
from qwen_vl_axera.contract import KV_CACHE_LEN, LANGUAGE_DTYPES, MAX_NEW_TOKENS, NUM_FRAMES, PREFILL_LEN, PROMPTS
from qwen_vl_axera.doors import last_opened, printable
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.files import made_directory

DEBUG = "QWEN_VL_AXERA_DEBUG"  # set to 1: tracebacks and other libraries' warnings are shown
AGAIN = 5  # seconds after a signal: another one within them would only disturb the ending
SAID = 300  # characters of an unexpected error's own words
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.32 reports, and writes below ~/.cache and TMPDIR, unless told not to
}

EXIT_OK, EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 130, 143


class _Parser(argparse.ArgumentParser):
    """argparse prints the whole usage before an error; here one line is enough."""

    def error(self, message: str):
        line = " ".join(f"{self.prog}: error: {message} (--help lists the flags)".split("\n"))
        self.exit(EXIT_BAD_INPUT, f"{line}\n")


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
        InputError: something that is not a directory stands in its place, or it lies in a checkpoint.
    """
    return made_directory(workdir, "--workdir ")


def made_workdir(workdir: Path, made_by: str) -> Path:
    """The work directory of a script that only reads what others made.

    Raises:
        InputError: there is none, since a mistyped one is not made; or as of `existing_workdir`.
    """
    if not workdir.is_dir():
        raise InputError(f"--workdir {workdir}: no such directory; expected the one that {made_by} wrote to")
    return made_directory(workdir, "--workdir ")


def warn(message: str | None) -> None:
    """Prints a warning on stderr, where there is one."""
    if message:
        print(f"warning: {message}", file=sys.stderr)


class _Terminated(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that temporary files go and children end."""


class _Signals:
    """Which signal came, if one did: an extension module may turn the exception that it raises into another one.

    Attributes:
        number: of the signal; 0 before one came.
        ended: the run is over, whatever comes.
    """

    def __init__(self):
        self.number, self.ended, self.when = 0, False, 0.0

    def caught(self, number: int, frame: object) -> None:
        if self.ended or (self.number and time.monotonic() < self.when + AGAIN):
            return
        self.number, self.when = number, time.monotonic()
        raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def lost(self, info: object) -> None:
        """Of `sys.unraisablehook`: what was raised within a destructor ends there; the signal is sent again."""
        if isinstance(info.exc_value, _Terminated | KeyboardInterrupt) and not self.ended:
            number, self.number = self.number or signal.SIGINT, 0
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
        elif debugging():
            sys.__unraisablehook__(info)


class _Clean:
    """A text stream that shows control characters as escapes; everything else is the stream's own.

    A reader that has gone (head, less) ends nothing: the script does what it has to do, and its exit code says so.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with suppress(BrokenPipeError):
            self.stream.write(printable(text))
        return len(text)

    def flush(self) -> None:
        with suppress(BrokenPipeError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def run(
    main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None, unexpected: int = EXIT_BAD_INPUT
) -> int:
    """Runs a script's `main` and turns what it raises into the exit codes of the design.

    Args:
        main: takes the arguments (None: those of the process) and returns an exit code.
        argv: the arguments.
        unexpected: the exit code for an unexpected exception: 2, or 1 for a check, which has not passed.

    Returns:
        0 done, 1 a check failed, 2 bad input or an unusable file, 130 interrupted, 143 ended by SIGTERM.
    """
    signals = _Signals()
    progress.running.clear()
    last_opened.clear()
    hook, before = sys.unraisablehook, [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    main_thread = threading.current_thread() is threading.main_thread()
    try:
        if main_thread:
            sys.unraisablehook = signals.lost
            signal.signal(signal.SIGTERM, signals.caught)
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a run in the background ignores it
                signal.signal(signal.SIGINT, signals.caught)
        _settle()
        with _clean_output():
            try:
                code = main(argv)
                sys.stdout.flush()
            except BaseException as error:
                signals.ended = True
                return _end(error, signals, unexpected)
            signals.ended = True
            return code
    except (_Terminated, KeyboardInterrupt) as error:  # just when the run began or ended
        signals.ended = True
        return _end(error, signals, unexpected)
    finally:
        sys.unraisablehook = hook
        _finish_output()
        if main_thread and argv is not None:  # called by a program that goes on
            for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
                signal.signal(number, handler)


def debugging() -> bool:
    """Whether tracebacks and other libraries' warnings are asked for."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def _settle() -> None:
    """The standard descriptors are there; other people's libraries: no network, no warnings between our lines."""
    for number in range(3):  # a closed one would be the next file's, and a shell's next file may be what we inherit
        try:
            usable = number == 0 or fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            os.fstat(number)
        except OSError:
            usable = False
        if not usable:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
    os.environ |= OFFLINE
    if not debugging():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)


@contextmanager
def _clean_output() -> Iterator[None]:
    """Both streams take any text: a terminal that knows no UTF-8 gets escapes, a closed one nothing."""
    null = open(os.devnull, "w") if None in (sys.stdout, sys.stderr) else None  # noqa: SIM115  # closed by whoever ran us
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with (
        redirect_stdout(_Clean(sys.stdout or null)),
        redirect_stderr(_Clean(sys.stderr or null)),
        nullcontext() if null is None else null,
    ):
        yield


def _end(error: BaseException, signals: _Signals, unexpected: int) -> int:
    """Says in one line how a run ends; returns its exit code."""
    if debugging():
        traceback.print_exception(error)
    if signals.number == signal.SIGTERM or isinstance(error, _Terminated):
        return _say("ended by SIGTERM; nothing half-written was left behind", EXIT_TERMINATED)
    if signals.number or isinstance(error, KeyboardInterrupt):
        return _say("\ninterrupted; nothing half-written was left behind", EXIT_INTERRUPTED)
    if isinstance(error, InputError):
        return _fail(error, EXIT_BAD_INPUT)
    if isinstance(error, CheckFailed):
        return _fail(error, EXIT_CHECK_FAILED)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", EXIT_BAD_INPUT)
    if isinstance(error, SystemExit):  # of argparse
        raise error
    step = progress.running[-1] if progress.running else ""
    place = [f"at step {step!r}" if step else "", f"after opening {last_opened[0]}" if last_opened else ""]
    kind = "not enough memory" if isinstance(error, MemoryError) else f"unexpected {type(error).__name__}"
    said = f": {str(error)[:SAID]}" if str(error) else ""
    hint = "" if debugging() else f" ({DEBUG}=1 shows where)"
    return _fail(" ".join(filter(None, [kind, *place])) + said + hint, unexpected)


def _fail(message: object, code: int) -> int:
    # One line, but spaces within it as they are: they may belong to a path.
    lines = [line.strip() for line in str(message).splitlines()]
    return _say(f"error: {' '.join(line for line in lines if line)}", code)


def _say(line: str, code: int) -> int:
    with suppress(OSError, ValueError):  # nobody listens
        print(line, file=sys.stderr, flush=True)
    return code


def _finish_output() -> None:
    """What can't be written any more must not be tried again while Python shuts down: it would complain, too."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
