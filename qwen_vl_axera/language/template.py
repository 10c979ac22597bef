"""The checkpoint's chat template, rendered by another process with bounds: a template is a program.

    python -m qwen_vl_axera.language.template < {"template": ..., "variables": ...}

It runs in Jinja's sandbox, with the settings and functions that transformers gives it.
"""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from qwen_vl_axera.errors import InputError

# Processor time, address space, and characters beyond those of its variables. A real template takes milliseconds,
# 26 MB with Python itself, and adds 200 characters.
SECONDS, MEMORY, LONGEST = 1, 256 << 20, 1 << 14
PATIENCE = 30  # seconds on the clock, on a machine that has no processor free
ROOT = Path(__file__).resolve().parents[2]


class TemplateError(Exception):
    """The template itself refuses its variables."""


def render(template: str, variables: dict[str, Any], path: Path) -> str:
    """What a chat template makes of its variables.

    Args:
        template: Jinja.
        variables: plain data.
        path: where the template is from, for messages.

    Raises:
        InputError: it takes more time or memory than any real one.
        TemplateError: it fails, or renders more than any prompt.
    """
    asked = json.dumps({"template": template, "variables": variables})
    argv = [sys.executable, "-m", "qwen_vl_axera.language.template"]
    try:
        done = subprocess.run(argv, input=asked.encode(), capture_output=True, cwd=ROOT, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise InputError(f"{path}: its chat template does not end within {PATIENCE} s") from None
    if done.returncode < 0:
        raise InputError(f"{path}: its chat template does not end within {SECONDS} s of work")
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode and (not said or said.startswith("MemoryError")):
        raise InputError(f"{path}: its chat template takes more than {MEMORY >> 20} MB")
    if done.returncode:
        raise TemplateError(said[:200])
    return json.loads(said)


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = sys.stdin.buffer.read()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + 4 * len(data),) * 2)
    asked = json.loads(data)
    environment = _environment()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
    try:
        text = environment.from_string(asked["template"]).render(**asked["variables"])
        if len(text) > LONGEST + len(data):
            raise ValueError(f"{len(text)} characters, no prompt is that long")
    except BaseException as error:
        sys.stdout.write(f"{type(error).__name__}: {str(error)[:200]}")
        return 1
    json.dump(text, sys.stdout)
    return 0


def _environment():
    """As `transformers.utils.chat_template_utils` makes it, transformers 5.23."""
    import datetime

    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str):
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **form: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **form)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


if __name__ == "__main__":
    sys.exit(main())
