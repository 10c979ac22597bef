"""pulsar2_commands.sh: what is left to do where Pulsar2 is, as a script that runs as it is, or not at all."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from qwen_vl_axera.chain.steps import Place
from qwen_vl_axera.compiler.container import PASSED_ON
from qwen_vl_axera.compiler.tool import Command
from qwen_vl_axera.contract import BUILD_OUTPUT
from qwen_vl_axera.errors import CheckFailed
from qwen_vl_axera.files import atomic_write

MODE = 0o755


def left_to_do(place: Place, build: Command, language: Command, package: Sequence[str]) -> str:
    """The script's text; its paths are those of this run.

    Args:
        place: what the run is about.
        build, language: the compiler's two commands.
        package: the packaging command, run once more when everything is built.
    """
    built = place.workdir / BUILD_OUTPUT / place.axmodel.name
    lines = (
        "#!/usr/bin/env bash",
        "# What is left to do where Pulsar2 is; the paths are those of this run.",
        "set -euo pipefail",
        "unset CDPATH",
        *(f"export {name}={shlex.quote(os.environ[name])}" for name in PASSED_ON if os.environ.get(name)),
        shlex.join(["cd", "--", str(Path.cwd())]),
        f"({build.line()})",
        shlex.join(["mv", "-f", "--", str(built), str(place.axmodel)]),
        f"({language.line()})",
        shlex.join(package),
    )
    return "".join(f"{line}\n" for line in lines)


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
