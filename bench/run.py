"""Measure everything side by side in one run: export, steps, memory, fidelity, frames; as ratios.

    python bench/run.py [--shape 3B] [--sizes HxW...] [--parts NAME...] [--workdir DIR] [--render] [--quick]

Reads:  nothing; random checkpoints are made in WORKDIR (20 GB for all parts of the 3B) and used again.
Writes: WORKDIR/benchmarks.json and .png. A whole run also writes docs/benchmarks.json and .png and the marked section
        of docs/benchmarks.md. `--render` does that again without measuring.
        `--quick`: a small shape, a minute, to see that it works; its numbers say nothing and change no document.

What is compared runs in turn, A B B A, and what is stated is the median of the ratios. Ratios to others are measured in
two separate runs, and ahead is only what stays above 1 in both. docs/benchmarks.md explains it.
`--parts` measures some parts anew; the others are kept from WORKDIR/benchmarks.json when machine, versions and shape
are the same, since nothing is compared across parts.
Exit code 0 whether or not targets are met: the table says which.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import chain_cost, export_cost, frame_cost, plot, render, step_cost
from bench.measure import ROOT, Row, conditions, together
from bench.plan import Plan, full_plan, quick_plan
from qwen_vl_axera import cli
from qwen_vl_axera.files import read_json, write_json

SIZES = ("308x308", "448x448", "672x672", "896x896", "1288x1288")
PARTS = {"export": export_cost, "steps": step_cost, "chain": chain_cost, "frames": frame_cost}
COMPARING = ("steps", "frames")  # parts with ratios to others: whether one is ahead is told by separate runs only
ROW_PARTS = {"graph": "steps"}  # rows that another part makes
ALIKE = "shape", "processor", "cores", "memory", "versions"


def size(text: str) -> tuple[int, int]:
    """An argparse type: 308x308, height and width."""
    try:
        height, width = (int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HxW, such as 308x308") from None
    if height < 28 or width < 28 or height % 28 or width % 28:
        raise argparse.ArgumentTypeError(f"{text}: expected multiples of 28")
    return height, width


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("--shape", choices=("3B", "7B", "32B", "72B"), default="3B")
    parser.add_argument("--sizes", type=size, nargs="+", default=[size(text) for text in SIZES], metavar="HxW")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--workdir", type=Path, default=Path("work-bench"), metavar="DIR", help="default: work-bench")
    parser.add_argument("--render", action="store_true", help="the document again, from WORKDIR/benchmarks.json")
    parser.add_argument("--quick", action="store_true", help="a small shape, to see that everything works")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    workdir = cli.existing_workdir(args.workdir).resolve()
    if args.render:
        result = read_json(workdir / "benchmarks.json")
    else:
        if "steps" in args.parts and not args.quick:
            step_cost.require_peer()
        plan = quick_plan(workdir) if args.quick else full_plan(workdir, args.shape, sorted(args.sizes))
        result = measure(plan, args.parts)
        if (workdir / "benchmarks.json").is_file():
            result = with_earlier_parts(result, read_json(workdir / "benchmarks.json"))
        write_json(workdir / "benchmarks.json", result)
    print(render.screen(result))
    if "steps" in result["parts"]:
        plot.draw(result, workdir / "benchmarks.png")
    if result["parts"] == list(PARTS) and not result["quick"]:
        publish(result, ROOT)
    return cli.EXIT_OK


def measure(plan: Plan, parts: Sequence[str]) -> dict[str, Any]:
    """Runs the parts and returns the content of benchmarks.json."""
    where = conditions()
    start = time.monotonic()
    rows = list(_rows(plan, parts))
    where |= {"shape": plan.shape, "minutes": (time.monotonic() - start) / 60}
    chosen = [part for part in PARTS if part in parts]
    return {"quick": plan.quick, "parts": chosen, "conditions": where, "rows": [row.to_json() for row in rows]}


def with_earlier_parts(result: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """A result completed by the parts that only an earlier one has, if that was measured in the same way."""
    alike = all(result["conditions"][name] == earlier["conditions"][name] for name in ALIKE)
    if not alike or result["quick"] or earlier["quick"]:
        return result
    kept = [row for row in earlier["rows"] if ROW_PARTS.get(row["part"], row["part"]) not in result["parts"]]
    order = list(render.PARTS)
    minutes = result["conditions"]["minutes"]
    if kept:
        minutes += earlier["conditions"]["minutes"]
    return {
        "quick": False,
        "parts": [part for part in PARTS if part in result["parts"] or part in earlier["parts"]],
        "conditions": result["conditions"] | {"minutes": minutes},
        "rows": sorted([*kept, *result["rows"]], key=lambda row: order.index(row["part"])),
    }


def _rows(plan: Plan, parts: Sequence[str]) -> Iterator[Row]:
    measured: dict[str, list[Row]] = {}
    for number in range(plan.runs):
        for name in PARTS if number == 0 else COMPARING:
            if name in parts:
                start = time.monotonic()
                for row in PARTS[name].measure(plan):
                    measured.setdefault(json.dumps([row.part, row.label, row.params]), []).append(row)
                print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    for row in map(together, measured.values()):
        # Targets of cost are for true size; that the answers are right must hold for any.
        yield dataclasses.replace(row, target=None) if plan.quick and row.unit == "x" else row


def publish(result: dict[str, Any], root: Path) -> None:
    """Writes the figures into docs/: nobody types them.

    Args:
        result: the content of benchmarks.json.
        root: of the project.
    """
    docs = root / "docs"
    write_json(docs / "benchmarks.json", result)
    plot.draw(result, docs / "benchmarks.png")
    render.rewrite_section(docs / "benchmarks.md", render.markdown(result, "benchmarks.png"))


if __name__ == "__main__":
    sys.exit(cli.run(main))
