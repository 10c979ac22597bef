"""pulsar2_commands.sh: what is left to do where Pulsar2 is, as a script that runs as it is, or not at all."""

import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwen_vl_axera.chain.options import ROOT, Run
from qwen_vl_axera.chain.steps import FORM, Step, python
from qwen_vl_axera.compiler.container import PASSED_ON
from qwen_vl_axera.compiler.tool import VARIABLE
from qwen_vl_axera.errors import CheckFailed
from qwen_vl_axera.files import atomic_write

MODE = 0o755
COMPILER = "qwen_vl_axera.compiler"
EXPORTED = f"--window-mode={FORM}"


def left_to_do(run: Run, steps: Sequence[Step], form: str) -> str:
    """The script's text; its paths are those of this run.

    Args:
        run: the run.
        steps: in their order; the compiler's become its own command lines. Those with FORM in their commands, and what
            follows them up to the compiler's next, run only where the probe finds another form than was exported.
        form: that was exported.
    """
    lines = [
        "#!/usr/bin/env bash",
        "# What is left to do where Pulsar2 is; the paths are those of this run.",
        "set -euo pipefail",
        "unset CDPATH",
        shlex.join(["export", f"PYTHONPATH={ROOT}"]),
        *(f"export {name}={shlex.quote(os.environ[name])}" for name in (VARIABLE, *PASSED_ON) if os.environ.get(name)),
        shlex.join(["cd", "--", str(Path.cwd())]),
        *_commands(run, steps, form),
    ]
    return "".join(f"{line}\n" for line in lines)


def _commands(run: Run, steps: Sequence[Step], form: str) -> Iterator[str]:
    ask = python("qwen_vl_axera.chain.probed", run.workdir)
    again = False
    for step in steps:
        words = list(step.command)
        if EXPORTED in words and not again:
            again = True
            yield f"form=$({shlex.join([*ask, 'form'])})"
            yield f'if [ "$form" != {form} ]; then # the probe found another form than was exported'
        elif again and COMPILER in words:
            again = False
            yield "fi"
        if COMPILER in words:
            yield from _compiler_lines(words[words.index(COMPILER) + 1 :])
            continue
        quoted = ('--window-mode="$form"' if word == EXPORTED else shlex.quote(word) for word in words)
        yield "    " * again + " ".join(quoted)
        if step.name == "npu-probe" and run.fallback:
            yield f'[ "$({shlex.join([*ask, "config"])})" = {shlex.quote(str(run.config))} ] || {{'
            yield '    echo "the probe chose another configuration; probe.json says which, and why" >&2'
            yield "    exit 1; }"


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
