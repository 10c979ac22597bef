"""The result as tables: for the screen, and in English and Chinese for the documents."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.measure import Row
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
LANGUAGES = ("en", "zh")
PROCESSOR = "transformers' {} image processor", "transformers 的 {} 图像处理器"

PARTS = {
    "export": ("export", "导出"),
    "steps": ("ONNX Runtime, one temporal step", "ONNX Runtime，一个时间步"),
    "graph": ("the graph", "计算图"),
    "chain": ("steps 1 and 3, and the graph against transformers", "第 1、3 步，以及与 transformers 的对比"),
    "frames": ("frames, calibration, embeddings", "图像帧、校准集、词嵌入"),
}
LABELS = {
    "export_to_copy": (
        "`export.py`, {shape}, {size} / copying its data file ({gigabytes:.2f} GB)",
        "`export.py`，{shape}，{size} / 复制其数据文件（{gigabytes:.2f} GB）",
    ),
    "step_dense": ("dense windows / grouped, {size}", "dense 窗口 / grouped，{size}"),
    "step_transformers": (
        "transformers' `OnnxExporter` / grouped, {size}",
        "transformers `OnnxExporter` / grouped，{size}",
    ),
    "answer_transformers": (
        "transformers' `OnnxExporter`, small tower, {size}: lowest cosine of a token with ours",
        "transformers `OnnxExporter`，小型塔，{size}：与我们结果的最低 token 余弦",
    ),
    "flatness": (
        "cost per patch, {size} / {other} ({patches}× the patches; {arithmetic}× the arithmetic per patch)",
        "每个 patch 的开销，{size} / {other}（patch 数为 {patches} 倍，每个 patch 的运算量为 {arithmetic} 倍）",
    ),
    "cost_per_patch": (
        "cost per patch at {size} ({patches} patches) / at the smallest size",
        "每个 patch 的开销，{size}（{patches} 个 patch）/ 最小尺寸",
    ),
    "nodes": ("nodes, {kind}, {size}", "节点数，{kind}，{size}"),
    "nodes_vendor": (
        "nodes, the vendor's scripts, simplified, {size} (cited)",
        "节点数，厂商脚本，简化后，{size}（引用）",
    ),
    "nodes_transformers": (
        "nodes, transformers 5.23 `OnnxExporter`, {size} (cited)",
        "节点数，transformers 5.23 `OnnxExporter`，{size}（引用）",
    ),
    "moved": ("bytes moved a step, {kind}, {size}", "每步搬运的字节，{kind}，{size}"),
    "peak": ("`{script}`, {size}: peak memory", "`{script}`，{size}：内存峰值"),
    "fidelity": (
        "{shape}, {size}: largest error / largest output",
        "{shape}，{size}：最大误差 / 最大输出",
    ),
    "fidelity_outliers": (
        "{shape}, {size}, massive activations: largest error / largest output",
        "{shape}，{size}，含极大激活值：最大误差 / 最大输出",
    ),
    "preprocess_to_processor_pillow": tuple(
        f"{text} / `preprocess.py`, {{source}} → {{seen}}" for text in (side.format("Pillow") for side in PROCESSOR)
    ),
    "preprocess_to_processor_torchvision": tuple(
        f"{text} / `preprocess.py`, {{source}} → {{seen}}"
        for text in (side.format("torchvision") for side in PROCESSOR)
    ),
    "preprocess_to_resize_pillow": (
        "Pillow's resize alone, one thread / `preprocess.py`",
        "仅 Pillow 缩放，单线程 / `preprocess.py`",
    ),
    "preprocess_normalized_to_processor_pillow": (
        "the same, every frame a still and normalised by us, too: Pillow processor",
        "同上，每帧单独成步并由我们归一化：Pillow 处理器",
    ),
    "preprocess_normalized_to_processor_torchvision": (
        "the same, every frame a still and normalised by us, too: torchvision processor",
        "同上，每帧单独成步并由我们归一化：torchvision 处理器",
    ),
    "preprocess_normalized_to_resize_pillow": (
        "the same, every frame a still and normalised by us, too: Pillow's resize alone",
        "同上，每帧单独成步并由我们归一化：仅 Pillow 缩放",
    ),
    "same_bits": (
        "values equal to the Pillow processor's, bit for bit",
        "与 Pillow 处理器逐位相同的值",
    ),
    "calibration_rate": (
        "`get_calib.py`, {source} → {size}, {frames} frames",
        "`get_calib.py`，{source} → {size}，{frames} 帧",
    ),
    "calibration_to_decode": (
        "`get_calib.py` / decoding the same frames alone",
        "`get_calib.py` / 仅解码同样的帧",
    ),
    "calibration_memory": (
        "`get_calib.py`: peak memory, {many} samples / {few} samples",
        "`get_calib.py`：内存峰值，{many} 个样本 / {few} 个样本",
    ),
    "embedding_to_copy": (
        "`extract_embedding.py`, {shape} / copying its {gigabytes:.2f} GB",
        "`extract_embedding.py`，{shape} / 复制 {gigabytes:.2f} GB",
    ),
}
# What the READMEs leave to docs/benchmarks.md.
DETAILS = {"cost_per_patch", "moved", "same_bits", "calibration_to_decode", "preprocess_to_resize_pillow"} | {
    label for label in LABELS if label.startswith("preprocess_normalized")
}
# What the READMEs state once for all sizes, with the worst figure.
WORST_OF_SIZES = {"fidelity", "fidelity_outliers", "peak"}
HEADINGS = (
    (
        "",
        "measured",
        "range, rounds",
        "target",
        "",
        "seconds, for context",
        "processor; disk: read, written",
        "peak memory",
    ),
    ("", "实测", "范围，轮数", "目标", "", "秒数（仅供参考）", "处理器；磁盘：读、写", "内存峰值"),
)
VERDICTS = {
    "met": ("met", "达到"),
    "missed": ("**missed**", "**未达到**"),
    "ahead": ("ahead", "领先"),
    "equal": ("equal", "持平"),
    "behind": ("**behind**", "**落后**"),
    None: ("", ""),
}
FAILED = ("missed", "behind")


def cells(row: Row, language: str = "en") -> list[str]:
    """One row's texts, in the order of HEADINGS."""
    index = LANGUAGES.index(language)
    value = "" if row.value is None else figure(row.value, row.unit)
    if row.note:
        value = f"{value} ({row.note})" if value else row.note
    spread = f"{figure(row.range[0], row.unit)} – {figure(row.range[1], row.unit)}" if row.range else ""
    if row.rounds:
        spread += ", " + (" + ".join(str(run["rounds"]) for run in row.runs) if len(row.runs) > 1 else str(row.rounds))
    target = f"{SIGNS[row.target[0]]} {figure(row.target[1], row.unit)}" if row.target else ""
    peak = memory(row.peak) if row.peak else ""
    if row.peak_limit:
        peak += f" (≤ {memory(row.peak_limit)})"
    context = ", ".join(f"{name} {seconds(amount)}" for name, amount in row.seconds.items())
    return [
        LABELS[row.label][index].format(**row.params),
        value,
        spread,
        target,
        VERDICTS[row.verdict()][index],
        context,
        "; ".join(cost(program, used) for program, used in row.costs.items()),
        peak,
    ]


SIGNS = {"<=": "≤", ">=": "≥", ">": ">"}


def figure(value: float, unit: str) -> str:
    match unit:
        case "x":
            return f"{value:.2f}×"
        case "nodes":
            return f"{value:.0f}"
        case "MB":
            return f"{value:.0f} MB"
        case "relative":
            return f"{value:.1e}"
        case "cosine":
            return f"{value:.5f}" if value > 0.99 else f"{value:.3f}"
        case "equal values":
            return f"{100 * value:.6g} %"
        case _:
            return f"{value:.0f} {unit}"


def cost(program: str, used: dict[str, float]) -> str:
    """A program's processor time, and how much of what it read and wrote was on the disk and not in the page cache."""
    parts = [f"{program} {seconds(used['processor'])}"]
    for name in ("read", "written"):
        if used.get(name) and f"{name}_disk" in used:
            parts.append(f"{100 * used[f'{name}_disk'] / used[name]:.0f} % of {memory(used[name])}")
    return ", ".join(parts)


def seconds(amount: float) -> str:
    return f"{amount:.2f} s" if amount >= 0.1 else f"{1000 * amount:.1f} ms"


def memory(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def screen(result: dict[str, Any]) -> str:
    """The whole result for the terminal, in plain columns."""
    rows = [Row.from_json(entry) for entry in result["rows"]]
    lines = [conditions(result["conditions"])]
    for part in dict.fromkeys(row.part for row in rows):
        lines += ["", PARTS[part][0].upper()]
        table = [cells(row) for row in rows if row.part == part]
        widths = [max(len(line[column]) for line in table) for column in range(len(HEADINGS[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True) if width).rstrip()
            for line in table
        ]
    return "\n".join(lines).replace("`", "").replace("**", "")


def markdown(result: dict[str, Any], language: str, plot: str, brief: bool) -> str:
    """A section for a document.

    Args:
        result: what `run.py` saved.
        language: "en" or "zh".
        plot: the picture's path as the document sees it.
        brief: `condensed`.
    """
    index = LANGUAGES.index(language)
    rows = [Row.from_json(entry) for entry in result["rows"]]
    rows = list(condensed(rows)) if brief else rows
    lines = [conditions(result["conditions"], language), ""]
    for part in dict.fromkeys(row.part for row in rows):
        table = [cells(row, language) for row in rows if row.part == part]
        used = [column for column in range(len(HEADINGS[0])) if column == 0 or any(line[column] for line in table)]
        lines += _markdown_table([PARTS[part][index], *HEADINGS[index][1:]], table, used)
        lines.append("")
    caption = ("Cost per step and per patch against size", "每步与每个 patch 的开销随尺寸的变化")[index]
    return "\n".join([*lines, f"![{caption}]({plot})"])


def condensed(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows for a README: no DETAILS, one row for all sizes of WORST_OF_SIZES, nodes where others have some, too."""
    comparable = {row.params["size"] for row in rows if row.cited}
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.label in DETAILS or (row.label == "nodes" and comparable and row.params["size"] not in comparable):
            continue
        apart = {"size"} if row.label in WORST_OF_SIZES else set()
        groups.setdefault((row.label, *(row.params[name] for name in sorted(row.params.keys() - apart))), []).append(
            row
        )
    for group in groups.values():
        if len(group) == 1:
            yield group[0]
        else:
            worst = max(
                group, key=lambda row: (row.verdict() in FAILED, row.note is not None, row.value or 0, row.peak or 0)
            )
            sizes = ", ".join(row.params["size"] for row in group)
            yield dataclasses.replace(worst, params=worst.params | {"size": sizes}, seconds={})


def _markdown_table(headings: Sequence[str], table: Iterable[list[str]], used: Sequence[int]) -> list[str]:
    line = lambda texts: "| " + " | ".join(texts[column].replace("|", "\\|") for column in used) + " |"  # noqa: E731
    return [line(headings), "|" + "---|" * len(used), *map(line, table)]


def conditions(values: dict[str, Any], language: str = "en") -> str:
    """Where and with what it was measured, in a sentence or two."""
    versions = ", ".join(f"{name} {number}" for name, number in values["versions"].items())
    gigabytes = math.ceil(values["memory"] / 2**30)
    minutes = values.get("minutes", 0)
    if language == "zh":
        return (
            f"测量条件：{values['processor']}，{values['cores']} 核，{gigabytes} GiB 内存；开始前负载 "
            f"{values['load_before']}；{values['date']}，用时 {minutes:.0f} 分钟；模型形状 {values['shape']}，"
            f"随机权重，float32；{versions}。比值大多不随机器而变，秒数则不然。"
        )
    return (
        f"Conditions: {values['processor']}, {values['cores']} cores, {gigabytes} GiB; load {values['load_before']} "
        f"before the run; {values['date']}, {minutes:.0f} minutes; shape {values['shape']}, random weights, float32; "
        f"{versions}. Ratios carry over to other machines better than seconds do."
    )


def rewrite_section(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Replaces what stands between two markers of a document, each on a line of its own.

    Raises:
        InputError: the document does not hold both markers, once each and in order.
    """
    document = Path(path).read_text(encoding="utf-8")
    before, first, rest = document.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last or begin in rest or end in before or end in after:
        raise InputError(f"{path}: expected one {begin} and one {end}, once each, in this order")
    with atomic_write(path, "w") as file:
        file.write(f"{before}{begin}\n{text}\n{end}{after}")
