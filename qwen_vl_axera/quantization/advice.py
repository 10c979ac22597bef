"""One line before a build with the vendor's recipe: what the mixed one would buy, as the last preview found.

    python -m qwen_vl_axera.quantization.advice [--workdir DIR]

Prints nothing where no search has run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.contract import MIXED_CONFIG, QUANTIZATION
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.quantization.record import read_quantization


def advice(workdir: Path) -> str | None:
    """The line, or None without a preview that searched.

    Raises:
        InputError: `quantization.json` is not what a preview writes.
    """
    workdir = Path(workdir)
    if not all((workdir / name).is_file() for name in (QUANTIZATION, MIXED_CONFIG)):
        return None
    found = read_quantization(workdir)
    mixed = found.mixed
    if mixed is None or mixed.relative_time is None or mixed.mac8 is None:
        return None
    if found.search is not None and not found.search.reached:
        return None  # nothing to recommend
    low, high = mixed.relative_time
    loss = max(found.loss(mixed), 0)
    return (
        f"QUANTIZE=mixed would do {mixed.mac8:.1%} of the multiply-accumulates with 8-bit activations, in an estimated "
        f"{low:.2f} to {high:.2f} of the time, for {loss:.4f} of a token's cosine (simulated; {QUANTIZATION} says "
        "what that rests on)"
    )


def build_parser():
    parser = cli.parser(__doc__)
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        line = advice(args.workdir)
    except InputError as error:  # a preview's record is in no build's way
        cli.warn(str(error))
        return cli.EXIT_OK
    if line:
        print(line)
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
