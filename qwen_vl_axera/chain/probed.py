"""What the probe has found, so that a run which comes after it does not export twice.

    python -P -m qwen_vl_axera.chain.probed WORKDIR form|config

Prints the form of window attention that compiles and computes the same, or the default one where nothing was probed; or
the build configuration to go on with, or nothing.
"""

import sys
from contextlib import suppress
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.contract import PROBE, WINDOW_MODES
from qwen_vl_axera.errors import InputError


def probed(workdir: Path) -> tuple[str, Path | None]:
    """The form and the configuration to build with; the default form and None where nothing usable was probed."""
    if (workdir / PROBE).is_file():
        with suppress(InputError, ImportError):  # no environment yet: a dry run
            from qwen_vl_axera.probe.record import read_probe

            found = read_probe(workdir)
            chosen = getattr(found, "config_file", None)
            return found.form or WINDOW_MODES[0], Path(chosen) if chosen else None
    return WINDOW_MODES[0], None


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("what", choices=("form", "config"))
    args = parser.parse_args(argv)
    form, config = probed(args.workdir)
    print(form if args.what == "form" else config or "")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
