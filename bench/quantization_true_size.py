"""The search on towers of true size with planted outliers: what it finds, and what it takes.

    python bench/quantization_true_size.py DIR --calibrate PATH... --evaluate PATH [--peers] [--docs FILE]

Random weights of the 3B's shape at 308x308, with massive tokens and with outlier channels (bench/witnesses.py, which
look at the first --calibrate). DIR holds checkpoints, graphs and calibration sets, 10 GB; checkpoints that are there
are taken as they are. --peers: ONNX Runtime's quantisation tooling on the same graph (bench/quantization_peers.py),
which takes up to 16 GB of memory. Writes: with --docs the section between the file's markers. Takes half an hour on
two cores.
"""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import run
from qwen_vl_axera import cli

KINDS = {"massive": "Massive tokens", "channels": "Outlier channels"}
SAMPLES, SIZE = 32, ("308", "308")
BEGIN, END = "<!-- true-size:begin -->", "<!-- true-size:end -->"
COMPARED = "linear layers at 8 bits"  # the setting that stands for one configuration


def prepare(place: Path, kind: str, calibrate: Sequence[Path]) -> None:
    """A witness with its graph and its calibration set, in DIR/KIND and DIR/work-KIND."""
    base, checkpoint, work = place / "plain", place / kind, place / f"work-{kind}"
    if not base.is_dir():
        run(["bench/make_checkpoint.py", base, "--shape", "3B", "--vision-only"])
    if not checkpoint.is_dir():
        run(["bench/witnesses.py", base, checkpoint, kind, "--video", calibrate[0], "--size", *SIZE])
    work.mkdir(exist_ok=True)
    run(["export.py", checkpoint, "video", "--size", *SIZE, "--workdir", work])
    run(["get_calib.py", "--inputs", *calibrate, "--size", *SIZE, "--num-samples", SAMPLES, "--workdir", work])


def search(place: Path, kind: str, evaluate: Path) -> None:
    """preview_quantization.py --search in this process; the seconds of its stages go to DIR/KIND.json."""
    import preview_quantization
    from qwen_vl_axera import progress
    from qwen_vl_axera.files import write_json
    from qwen_vl_axera.quantization.search import PROGRESS_FILE

    stages: list[tuple[str, float]] = []

    @contextmanager
    def timed(name: str, total: int | None = None, unit: str = "B"):
        start = time.monotonic()
        yield progress.Stage(None)
        stages.append((name, time.monotonic() - start))

    progress.stage = timed
    work = place / f"work-{kind}"
    (work / PROGRESS_FILE).unlink(missing_ok=True)
    given = [place / kind, "--workdir", work, "--evaluate", evaluate, "--search"]
    preview_quantization.main(list(map(str, given)))
    write_json(place / f"{kind}.json", {"stages": stages})


def costs(stages: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Seconds of the parts that a user waits for."""
    found: dict[str, float] = {}
    for name, seconds in stages:
        part = "search" if name == "search" or name.endswith("layers wide") else name
        found[part] = found.get(part, 0) + seconds
    return {part: found[part] for part in ("calibration", COMPARED, "search")}


def section(results: dict[str, dict[str, Any]], peers: str | None) -> str:
    """The document's part: a table for each witness, then seconds and memory."""
    lines = []
    for kind, result in results.items():
        lines += [f"{KINDS[kind]}:", "```", result["table"].rstrip(), "```"]
    lines += [
        "",
        f"| | calibration, {SAMPLES} samples | one configuration | search | whole command | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for kind, result in results.items():
        seconds = [*costs(result["stages"]).values(), result["seconds"]]
        cells = " | ".join(f"{value:.0f} s" for value in seconds)
        lines.append(f"| {KINDS[kind].lower()} | {cells} | {result['peak'] / 1e9:.1f} GB |")
    if peers:
        lines += [
            "",
            "One quantised setting, calibrated on 8 samples and run on 4 (`bench/quantization_peers.py`):",
            "```",
            peers.rstrip(),
            "```",
        ]
    return "\n".join(lines)


def build_parser():
    parser = cli.parser(__doc__)
    parser.add_argument("place", metavar="DIR", type=Path)
    parser.add_argument("--calibrate", type=Path, nargs="+", required=True, metavar="PATH", help="clips and pictures")
    parser.add_argument("--evaluate", type=Path, required=True, metavar="PATH", help="another clip")
    parser.add_argument("--peers", action="store_true", help="compare with ONNX Runtime's tooling, too")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="a document whose section is to be replaced")
    parser.add_argument("--only", choices=KINDS, help="one search, in this process")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.only:
        search(args.place, args.only, args.evaluate)
        return cli.EXIT_OK
    args.place.mkdir(parents=True, exist_ok=True)
    given = [args.place, "--calibrate", *args.calibrate, "--evaluate", args.evaluate]
    results = {}
    for kind in KINDS:
        prepare(args.place, kind, args.calibrate)
        made = run(["bench/quantization_true_size.py", *given, "--only", kind])
        stages = json.loads((args.place / f"{kind}.json").read_text(encoding="utf-8"))["stages"]
        results[kind] = {"table": made.stdout, "seconds": made.seconds, "peak": made.peak, "stages": stages}
        print(made.stdout, flush=True)
    peers = None
    if args.peers:
        work = args.place / "work-massive"
        peers = run(
            ["bench/quantization_peers.py", work / "massive_vision.onnx", work / "calib" / "hidden_states.tar"]
        ).stdout
    text = section(results, peers)
    if args.docs:
        from bench.render import rewrite_section

        rewrite_section(args.docs, text, BEGIN, END)
    print(text)
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
