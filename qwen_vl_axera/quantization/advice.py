"""One line before a build with the vendor's recipe: what the mixed one would buy, as the last preview found.

    python -m qwen_vl_axera.quantization.advice [--workdir DIR]

Standard library only; prints nothing where no search has run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.contract import MIXED_CONFIG, QUANTIZATION
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_json


def advice(workdir: Path) -> str | None:
    """The line, or None without a preview that searched.

    Raises:
        InputError: `quantization.json` is not what a preview writes.
    """
    path = Path(workdir) / QUANTIZATION
    if not (path.is_file() and (path.parent / MIXED_CONFIG).is_file()):
        return None
    report = read_json(path)
    try:
        settings = {entry["name"]: entry for entry in report["settings"]}
        if "mixed" not in settings:
            return None
        mixed, floor = settings["mixed"], report["floor"]
        low, high = mixed["relative_time"]
        loss = max(floor[name] - mixed[name] for name in ("mean_token_cosine", "centred_cosine"))
        return (
            f"QUANTIZE=mixed would compute {mixed['mac8']:.1%} of the products with 8-bit activations, in an estimated "
            f"{low:.2f} to {high:.2f} of the time, for {max(loss, 0):.4f} of a token's cosine (simulated: {path.name})"
        )
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: not what preview_quantization.py writes; run it again, or delete the file") from None


def build_parser():
    parser = cli.parser(__doc__)
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    if line := advice(build_parser().parse_args(argv).workdir):
        print(line)
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
