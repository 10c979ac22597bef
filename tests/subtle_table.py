"""What the gate says of each subtle mistake, on any checkpoints.

    python -m tests.subtle_table --on CKPT WORKDIR [--on CKPT WORKDIR]... [--write docs/planted_mistakes.md]

Reads:  WORKDIR after run_video_by_sec.py and export.py. At true size a mistake takes a minute.
Writes: nothing, or the table between the marks of the file. Exit code 1 when a mistake passes.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.render import rewrite_section
from qwen_vl_axera import cli
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.fidelity.gate import find_graphs, judge_graphs, open_clip
from qwen_vl_axera.fidelity.truth import keeps
from tests.subtle import SUBTLE, idle_block, plant

BEGIN, END = "<!-- subtle:begin -->", "<!-- subtle:end -->"
NONE = "none"


def verdicts(checkpoint: Checkpoint, workdir: Path) -> Iterator[tuple[str, dict]]:
    """Mistake -> the damaged graph's entry in `fidelity.json`; no mistake first."""
    path = find_graphs(checkpoint.name, workdir)[0]
    _, judge = open_clip(checkpoint, workdir)
    idle = idle_block(judge)
    yield NONE, judge_graphs([path], judge, checkpoint)[0].report()
    for mistake in SUBTLE:
        with tempfile.TemporaryDirectory(dir=workdir) as place:
            planted = plant(mistake, path, checkpoint, Path(place) / "planted", idle)
            report = judge_graphs([planted], judge, checkpoint)[0].report()
        print(f"{checkpoint.name}: {mistake}: {'PASSES' if report['passed'] else 'caught'}", file=sys.stderr)
        yield mistake, report


def cells(entry: dict) -> list[str]:
    """Ratio, where the error starts, what is named first."""
    exact, problems = entry["exact"], entry["problems"]
    numeric = [problem for problem in problems if problem.startswith(("the error", "NaN"))]
    named = [problem for problem in problems if problem not in numeric]
    starts = numeric[0].partition("first seen in ")[2] if numeric else ""
    ratio = f"{exact['ratio']:.3g}" if exact else "not finite"
    wrong = exact is None or not keeps(exact)
    return [f"**{ratio}**" if wrong else ratio, starts or "–", (named or ["–"])[0].split(":")[0]]


def table(columns: dict[str, dict[str, dict]]) -> str:
    """Markdown: a row for each mistake, three columns for each checkpoint."""
    names = [f"{name}: {title}" for name in columns for title in ("ratio", "starts in", "named")]
    lines = [f"| mistake | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for mistake in (NONE, *SUBTLE):
        row = [cell for entries in columns.values() for cell in cells(entries[mistake])]
        lines.append(f"| {mistake} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs=2, type=Path, action="append", required=True, metavar=("CKPT", "WORKDIR"))
    parser.add_argument("--write", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    columns = {}
    for directory, workdir in args.on:
        checkpoint = Checkpoint(directory)
        columns[checkpoint.name] = dict(verdicts(checkpoint, workdir))
    text = table(columns)
    print(text)
    if args.write:
        rewrite_section(args.write, text.rstrip("\n"), BEGIN, END)
    right = (entry["passed"] == (mistake == NONE) for entries in columns.values() for mistake, entry in entries.items())
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(cli.run(main))
