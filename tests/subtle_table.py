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
from qwen_vl_axera.fidelity.gate import find_graphs, open_clip
from qwen_vl_axera.fidelity.verdict import Run
from tests.subtle import SUBTLE, idle_block, judged, plant

BEGIN, END = "<!-- subtle:begin -->", "<!-- subtle:end -->"
NONE = "none"


def verdicts(checkpoint: Checkpoint, workdir: Path) -> Iterator[tuple[str, Run]]:
    """Mistake -> the damaged graph and what is wrong with it; no mistake first."""
    path = find_graphs(checkpoint.name, workdir)[0]
    _, judge = open_clip(checkpoint, workdir)
    idle = idle_block(judge)
    yield NONE, judged(path, judge, checkpoint)
    for mistake in SUBTLE:
        with tempfile.TemporaryDirectory(dir=workdir) as place:
            run = judged(plant(mistake, path, checkpoint, Path(place) / "planted", idle), judge, checkpoint)
        print(f"{checkpoint.name}: {mistake}: {'caught' if wrong(run) else 'PASSES'}", file=sys.stderr)
        yield mistake, run


def wrong(run: Run) -> bool:
    return bool(run.problems or run.differences)


def cells(run: Run) -> list[str]:
    """The ratio that exceeds its limit first, or that of the typical token; where the error starts; what is named."""
    starts = run.problems[0].partition("first seen in ")[2] if run.problems else ""
    ratio = f"{getattr(run.exact, run.exact.exceeded or 'typical_ratio'):.3g}" if run.exact else "not finite"
    named = (run.differences or ["–"])[0].split(":")[0]
    return [f"**{ratio}**" if run.problems else ratio, starts or "–", named]


def table(columns: dict[str, dict[str, Run]]) -> str:
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
    right = (wrong(run) == (mistake != NONE) for runs in columns.values() for mistake, run in runs.items())
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(cli.run(main))
