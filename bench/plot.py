"""The picture: cost per step and per patch against the number of patches."""

import io
from pathlib import Path
from typing import Any

from bench.measure import Row
from qwen_vl_axera.files import atomic_write

COLORS = {"grouped": "#0b6e4f", "dense": "#c8553d", "transformers": "#4a6fa5"}
NAMES = {"grouped": "grouped windows (default)", "dense": "dense windows", "transformers": "transformers' OnnxExporter"}


def draw(result: dict[str, Any], path: Path) -> None:
    """Writes a PNG of the rows `cost_per_patch`: seconds per step (both axes logarithmic), milliseconds per patch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    rows = [row for row in map(Row.from_json, result["rows"]) if row.label == "cost_per_patch"]
    figure, (step, patch) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for kind, color in COLORS.items():
        points = [(row.params["patches"], row.seconds[kind]) for row in rows if kind in row.seconds]
        if not points:
            continue
        patches, seconds = zip(*points, strict=True)
        style = {"marker": "o", "color": color, "label": NAMES[kind], "markersize": 5}
        step.plot(patches, seconds, **style)
        patch.plot(patches, [1000 * one / count for count, one in points], **style)
    for axes, title in ((step, "seconds per step"), (patch, "milliseconds per patch")):
        axes.set_title(title, loc="left")
        axes.set_xscale("log")
        axes.set_xticks([row.params["patches"] for row in rows], [row.params["size"] for row in rows], rotation=30)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    step.set_yscale("log")
    step.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    step.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    step.minorticks_off()
    patch.set_ylim(bottom=0)
    step.legend(frameon=False)
    where = result["conditions"]
    engine = f"ONNX Runtime {where['versions'].get('onnxruntime', '')}"
    figure.supxlabel(f"frame size; {engine}, {where['cores']} cores, float32", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    pyplot.close(figure)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
