"""The report's chapter on 8 bits: what the last preview in the work directory found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from preprocess import unpatchify
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import QUANTIZATION, GraphSpec
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.graph.files import load_graph, read_spec
from qwen_vl_axera.oracle.record import Capture
from qwen_vl_axera.quantization.record import MIXED, Quantization, Searched, Setting, read_quantization
from qwen_vl_axera.record import Count, Text, record
from qwen_vl_axera.report.charts import depth_chart, visible
from qwen_vl_axera.report.parts import Part, check, clipped, read_part
from qwen_vl_axera.report.pictures import CONTACT, Scale, data_uri, error_map, shrink
from qwen_vl_axera.towers import find_tower

T = TypeVar("T")

ROUNDING = 1e-9  # of differences of cosines
CAPTURED = "the captured clip"  # as the preview names it
MOST_ROWS = 32  # of the table of settings
MOST_SETTINGS = 7  # beside the floor, in curves and maps
MOST_LAYERS = 24  # in the sensitivity chart
MOST_PARTS = 8  # of a setting's time
MOST_MAPS = 6  # steps; of more, those that lose most
MOST_LINES = 24  # of questions, notes and findings
TILE = (144, 168)  # a map's width and height on the page, at most
ROOM, GAP = 920, 16  # pixels for a row of maps, so that all settings stand beside each other; between two of them


@record
class Judged:
    """The frames that a preview was judged on."""

    clips: list[Text]
    steps: Count
    simulated_steps: Count


@record
class Calibrated:
    """What it was calibrated on."""

    archive: Text
    samples: Count


@record
class Said:
    """An answer under one setting, and whether it is the float network's, token by token."""

    text: str
    equal: bool


@record
class Question:
    """A question about a clip, and the answers by setting."""

    clip: str
    prompt: str
    answers: dict[str, Said]


def preview_part(
    checkpoint: Checkpoint, workdir: Path, clip: Part[tuple[Capture, np.ndarray]], command: str
) -> Part[dict[str, Any]]:
    """What the template shows of `quantization.json`, if it is about the graph and the samples that are there.

    Args:
        checkpoint: the model.
        workdir: what the steps left.
        clip: the captured clip; its frames lie under the maps of a preview that was judged on it.
        command: previews again.
    """
    part = read_part(lambda path: read_quantization(path.parent), workdir / QUANTIZATION, command)
    if part.value is None:
        return part
    try:
        return Part(_chapter(part.value, checkpoint, workdir, clip.value))
    except InputError as error:
        return Part(None, f"{error}.", command)


def _chapter(
    found: Quantization, checkpoint: Checkpoint, workdir: Path, clip: tuple[Capture, np.ndarray] | None
) -> dict[str, Any]:
    judged = _checked(Judged, found.evaluation, "evaluation")
    spec = check_subject(found, judged, checkpoint, workdir)
    shown = found.settings if len(found.settings) <= MOST_SETTINGS else [*found.settings[:6], found.settings[-1]]
    settings = [found.floor, *shown]
    blocks = [block.block for block in found.floor.blocks]
    losses = {entry.name: [1 - block.mean_token_cosine for block in entry.blocks] for entry in settings}
    return {
        "graph": found.graph,
        "size": spec.size,
        "calibration": _checked(Calibrated, found.calibration, "calibration"),
        "judged": judged,
        "time": found.time,
        "times": time_chart(found.settings),
        "clips": clipped(judged.clips, MOST_LINES),
        "rows": clipped([found.floor, *found.settings], MOST_ROWS),
        "settings": settings,
        "hidden": len(found.settings) - len(shown),
        "chart": depth_chart(losses, blocks) if blocks and judged.simulated_steps else None,
        "search": found.search and sensitivity_chart(found.search) | {"reached": reached(found)},
        "maps": token_maps(settings, spec, _frames(judged, spec, clip)) if judged.simulated_steps else None,
        "findings": clipped(found.census.findings, MOST_LINES),
        "notes": clipped(list(dict.fromkeys([*found.setting_notes, *found.notes])), MOST_LINES),
        "assumptions": found.assumptions,
        "text": None if found.text is None else answers(_checked(list[Question], found.text, "text")),
        "mixed": found.mixed,
        "loss": found.loss(found.mixed) if found.mixed else None,
    }


def check_subject(found: Quantization, judged: Judged, checkpoint: Checkpoint, workdir: Path) -> GraphSpec:
    """What the graph that a preview is about is made for.

    Raises:
        InputError: it is of another model or size, not there any more, or changed since the preview, as may be what the
            preview was calibrated and judged on.
    """
    path = workdir / Path(found.graph).name
    if path.name != found.graph or not path.name.startswith(f"{checkpoint.name}_vision"):
        raise InputError(f"{QUANTIZATION} is about {found.graph}, not about a graph of {checkpoint.name}")
    if not path.is_file():
        raise InputError(f"{QUANTIZATION} is about {found.graph}, which is not there any more")
    spec = read_spec(load_graph(path), path)
    check(QUANTIZATION, found.made_from, workdir)
    rows, columns = find_tower(spec.tower).token_grid(spec.size)
    depth = list(range(checkpoint.config.vision.depth))
    names = [found.floor.name, *(entry.name for entry in found.settings)]
    if len(set(names)) < len(names):
        raise InputError(f"{QUANTIZATION}: two settings have one name")
    for entry in (found.floor, *found.settings):
        if any(len(step.token_cosines) != rows * columns for step in entry.steps):
            raise InputError(f"{QUANTIZATION} is of another size than {found.graph}, {rows} × {columns} tokens")
        if len(entry.steps) != judged.simulated_steps or [block.block for block in entry.blocks] != depth:
            raise InputError(
                f"{QUANTIZATION}: the setting {entry.name} has other steps or blocks than the evaluation and the model"
            )
    return spec


def reached(found: Quantization) -> bool:
    """Whether the mix keeps the search's target, by its figures, too."""
    if found.mixed is None or found.search is None:
        return False
    return found.search.reached and found.loss(found.mixed) <= found.search.target_loss + ROUNDING


def sensitivity_chart(search: Searched) -> dict[str, Any]:
    """The layers by what a token loses when they alone have 8 bits, the most harmful first."""
    groups = sorted(search.sensitivity, key=lambda group: -group.damage)
    largest = max((group.damage for group in groups), default=0.0)
    wide = set(search.wide)
    return {
        "target": search.target_loss,
        "wide": clipped(search.wide, MOST_LINES),
        "groups": [
            {
                "name": group_name(group.layers),
                "damage": group.damage,
                "width": 100 * max(group.damage, 0) / largest if largest > 0 else 0,
                "share": group.macs / search.macs,
                "wide": bool(wide.intersection(group.layers)),
            }
            for group in groups[:MOST_LAYERS]
        ],
        "following": len(groups) - MOST_LAYERS,
        "next": groups[MOST_LAYERS].damage if len(groups) > MOST_LAYERS else None,
    }


def time_chart(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Where the time goes at the upper bound: for the first setting and the mix the parts, the largest first."""
    shown = [one for one in settings if one.time_parts and (one is settings[0] or one.name == MIXED)]
    largest = max((time for one in shown for time in one.time_parts.values()), default=0)
    return [
        {"name": one.name, "part": part, "ms": time, "width": 100 * (time / largest) if largest else 0}
        for one in shown
        for part, time in sorted(one.time_parts.items(), key=lambda item: -item[1])[:MOST_PARTS]
    ]


def group_name(layers: Sequence[str], most: int = 4) -> str:
    """Layers that read one tensor: the first name, of the others what differs ("blocks.0.attn.qkv.q, k, v")."""
    first, *others = layers[:most] or ["–"]
    prefix = first[: first.rfind(".") + 1]
    names = [first, *(name.removeprefix(prefix) or name for name in others)]
    return ", ".join(names) + (f" and {len(layers) - most} more" if len(layers) > most else "")


def token_maps(settings: Sequence[Setting], spec: GraphSpec, frames: Sequence[np.ndarray] | None) -> dict[str, Any]:
    """1 − cosine of each token: a row for each step, a column for each setting, one colour scale for all.

    Args:
        settings: the floor and those to compare with it.
        spec: of the graph: gives the grid of tokens.
        frames: uint8 (H, W, 3), the first of each step, to lie under the maps; None: not known.
    """
    rows, columns = find_tower(spec.tower).token_grid(spec.size)
    cosines = np.array([[step.token_cosines for step in entry.steps] for entry in settings], np.float64)
    losses = visible(1 - cosines).reshape(len(settings), -1, rows, columns)
    scale = Scale.of(np.minimum(losses, 1))  # a token that shares nothing; beyond it lies the opposite
    mixed = [entry.name for entry in settings].index(MIXED) if MIXED in (entry.name for entry in settings) else 1
    by_loss = np.argsort(-losses[min(mixed, len(settings) - 1)].mean((1, 2)), kind="stable")
    zoom = min(TILE[0] / columns, TILE[1] / rows, (ROOM / len(settings) - GAP) / columns)
    return {
        "steps": [
            {"step": step, "tiles": [_tile(of[step], scale, None if frames is None else frames[step]) for of in losses]}
            for step in sorted(by_loss[:MOST_MAPS].tolist())
        ],
        "total": losses.shape[1],
        "width": max(round(columns * zoom), 1),
        "height": max(round(rows * zoom), 1),
        "framed": frames is not None,
        "grid": (rows, columns),
        "bar": data_uri(scale.bar(), lossless=True),
        "ticks": scale.ticks(),
    }


def _tile(losses: np.ndarray, scale: Scale, frame: np.ndarray | None) -> dict[str, Any]:
    # Without a frame a pixel is a token: a few hundred bytes, and the page enlarges it.
    picture = Image.fromarray(scale.colours(losses)) if frame is None else None
    row, column = (int(n) for n in np.unravel_index(np.argmax(losses), losses.shape))
    return {
        "uri": data_uri(picture or shrink(error_map(frame, losses, scale), CONTACT), lossless=picture is not None),
        "worst": float(losses.max()),
        "mean": float(losses.mean()),
        "row": row,
        "column": column,
    }


def _frames(judged: Judged, spec: GraphSpec, clip: tuple[Capture, np.ndarray] | None) -> list[np.ndarray] | None:
    """The first frame of each step, where the preview was judged on the whole captured clip."""
    if clip is None or judged.clips != [CAPTURED] or clip[0].size != spec.size:
        return None
    pixels = clip[1]
    if not len(pixels) == judged.steps == judged.simulated_steps:
        return None
    return [unpatchify(np.asarray(pixels[step : step + 1]), *spec.size)[0] for step in range(len(pixels))]


def answers(questions: Sequence[Question]) -> dict[str, Any]:
    """How many answers stay the float network's under each setting, and where they do not."""
    rows, changed = [], {}
    for question in questions:
        original = question.answers.get("float")
        if original is None:
            raise InputError(f"{QUANTIZATION}: text: no answer of the float network to {question.prompt!r:.80}")
        others = {name: said for name, said in question.answers.items() if name != "float"}
        differing = {name: said.text for name, said in others.items() if not said.equal or said.text != original.text}
        for name in others:
            changed[name] = changed.get(name, 0) + (name in differing)
        row = {"clip": question.clip, "prompt": question.prompt, "float": original.text}
        rows.append(row | {"differing": clipped(list(differing.items()), MOST_SETTINGS)})
    return {
        "total": len(rows),
        "changed": changed,
        "settings": clipped(list(changed), MOST_ROWS),
        "differing": clipped([row for row in rows if row["differing"].shown], MOST_LINES),
        "kept": clipped([row for row in rows if not row["differing"].shown], MOST_LINES),
    }


def _checked(kind: type[T], value: Any, name: str) -> T:
    """A part of the record that the record itself leaves open.

    Raises:
        InputError: it is not what a preview writes.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{QUANTIZATION}: {name}: {first['msg']}; run preview_quantization.py again") from None
