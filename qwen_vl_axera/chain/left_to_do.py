"""pulsar2_commands.sh: what is left to do where Pulsar2 is, as a script that runs as it is, or not at all."""

import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwen_vl_axera.chain.code import PROJECT
from qwen_vl_axera.compiler.container import PASSED_ON
from qwen_vl_axera.compiler.tool import VARIABLE
from qwen_vl_axera.errors import CheckFailed
from qwen_vl_axera.files import atomic_write

MODE = 0o755
PROBED = "--window-mode=@form"  # in a command: the form that the probe finds
COMPILER = "qwen_vl_axera.compiler"


def left_to_do(steps: Sequence[Sequence[str]], ask: Sequence[str], form: str) -> str:
    """The script's text; its paths are those of this run.

    Args:
        steps: commands in their order. The compiler's become its own command lines. Those from the first with PROBED
            in it up to the compiler's next are run only where the probe finds another form than was exported.
        ask: the command that prints the form which the probe has found.
        form: that was exported.
    """
    lines = [
        "#!/usr/bin/env bash",
        "# What is left to do where Pulsar2 is; the paths are those of this run.",
        "set -euo pipefail",
        "unset CDPATH",
        shlex.join(["export", f"PYTHONPATH={PROJECT}"]),
        *(f"export {name}={shlex.quote(os.environ[name])}" for name in (VARIABLE, *PASSED_ON) if os.environ.get(name)),
        shlex.join(["cd", "--", str(Path.cwd())]),
        *_commands(steps, ask, form),
    ]
    return "".join(f"{line}\n" for line in lines)


def _commands(steps: Sequence[Sequence[str]], ask: Sequence[str], form: str) -> Iterator[str]:
    again = False
    for step in steps:
        ours = COMPILER not in step
        if PROBED in step and not again:
            again = True
            yield f"form=$({shlex.join(ask)})"
            yield f'if [ "$form" != {form} ]; then # the probe found another form than was exported'
        elif again and not ours:
            again = False
            yield "fi"
        if ours:
            words = ('--window-mode="$form"' if word == PROBED else shlex.quote(word) for word in step)
            yield "    " * again + " ".join(words)
        else:
            yield from _compiler_lines(step[step.index(COMPILER) + 1 :])


def _compiler_lines(words: Sequence[str]) -> Iterator[str]:
    """A command of the compiler as its own command line, and where its result goes."""
    from qwen_vl_axera.compiler.__main__ import build_parser, parse_command

    command = parse_command(words)
    yield f"({command.line()})"
    if target := getattr(build_parser().parse_args(words), "deliver", None):
        yield shlex.join(["mv", "-f", "--", str(command.expects[0][0] / target.name), str(target)])


def write_script(path: Path, text: str) -> None:
    """Writes it, executable.

    Raises:
        CheckFailed: bash does not take it for a script: nothing is written.
    """
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    if checked.returncode:
        raise CheckFailed(f"{path}: the commands make no script ({checked.stderr.strip()}); please report this")
    with atomic_write(path, "w", MODE) as file:
        file.write(text)
