"""`report.html`: what a work directory holds, on one self-contained page.

No model runs for it. What is cheap to compute again is not trusted: thresholds are applied anew to the figures, and
the patch images are turned back. A part that is absent, unreadable or of another run says so and names the command
that makes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from preprocess import TEMPORAL_PATCH_SIZE, frame_to_array, unpatchify
from qwen_vl_axera import progress
from qwen_vl_axera.calibration.manifest import read_manifest
from qwen_vl_axera.chain.record import read_steps
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import (
    CALIB,
    CALIB_MANIFEST,
    CAPTURE,
    FIDELITY,
    LEFT_TO_DO,
    PREFLIGHT,
    STEPS,
)
from qwen_vl_axera.doors import check_file, check_output, open_file, printable
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.record import Fidelity, read_fidelity
from qwen_vl_axera.fidelity.tables import RATIOS
from qwen_vl_axera.files import READ_SIZE, atomic_write
from qwen_vl_axera.oracle.record import Capture, read_capture, read_pixels
from qwen_vl_axera.preflight.checks import read_outcome
from qwen_vl_axera.report.build import axmodel_part, probe_part
from qwen_vl_axera.report.figures import calibration_sheet, error_maps
from qwen_vl_axera.report.parts import Part, amount, read_part, read_text, shell_line, shorten
from qwen_vl_axera.report.pictures import FLOOR, PATCH_ROWS, THUMBNAIL, data_uri, shrink
from qwen_vl_axera.report.quantization import preview_part
from qwen_vl_axera.report.verdict import Finding, findings, worst

TEMPLATES, TEMPLATE = Path(__file__).parent, "page.html.j2"
TITLE = b"vision graph report</title>"  # of every such page
MOST_FRAMES = 64  # shown; a report stays a page that a phone can open


@dataclass(frozen=True)
class Commands:
    """The commands that make what is absent, with this run's paths."""

    ckpt: Path
    workdir: Path
    source: tuple[str, ...] = ("VIDEO",)

    def python(self, script: str, *words: Any, ckpt: bool = True) -> str:
        return shell_line("python", script, *([self.ckpt] if ckpt else []), *words, "--workdir", self.workdir)

    @property
    def pipeline(self) -> str:
        return f"WORKDIR={shell_line(self.workdir)} {shell_line('bash', 'export_video.sh', self.ckpt, *self.source)}"


def write_report(checkpoint: Checkpoint, workdir: Path, output: Path, preflight: Path | None = None) -> list[Finding]:
    """Writes the report, atomically.

    Args:
        checkpoint: the model that the work directory belongs to.
        workdir: what the steps left; any part may be absent.
        output: the HTML file.
        preflight: what preflight.py wrote (default: preflight.json in the work directory).

    Returns:
        The verdict's lines, failures first.

    Raises:
        InputError: the work directory, or a file named with `preflight`, is not there.
    """
    if not workdir.is_dir():
        raise InputError(f"--workdir {workdir}: no such directory; run run_video_by_sec.py first")
    if preflight is not None:
        check_file(preflight)
    check_output(output)  # before the work, not after it
    context = gather(checkpoint, workdir, preflight or workdir / PREFLIGHT)
    page = render(context)
    with atomic_write(output, "w") as file:
        file.write(page)
    return context["findings"]


def is_report(path: Path) -> bool:
    """Whether a file is such a page, by its beginning."""
    with open_file(path) as file:
        head = file.read(READ_SIZE)
    return head.startswith(b"<!DOCTYPE html>") and TITLE in head


def render(context: dict[str, Any]) -> str:
    """The page; every value is escaped, and characters that do not print or steer are shown as escapes."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    return environment.get_template(TEMPLATE).render(context)


def _printable(value: Any) -> Any:
    # A macro's output is markup, made of values that were cleaned before.
    plain = isinstance(value, str) and not hasattr(value, "__html__")
    return printable(value) if plain else value


def gather(checkpoint: Checkpoint, workdir: Path, preflight: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    commands = Commands(checkpoint.directory, workdir)
    verify = commands.python("test_onnx_video_by_sec.py")
    clip = read_clip(checkpoint, workdir, commands)
    if clip.value:
        commands = Commands(checkpoint.directory, workdir, tuple(clip.value[0].source))
    fidelity = read_part(lambda path: read_current(path, clip), workdir / FIDELITY, verify)
    calibrate = commands.python("get_calib.py", "--inputs", *commands.source, ckpt=False)
    calib = workdir / CALIB
    manifest = read_part(
        lambda path: read_manifest(path.parent), calib / CALIB_MANIFEST, calibrate, f"{CALIB}/{CALIB_MANIFEST}"
    )
    unseen = next((part for part in (clip, fidelity) if part.value is None), None)
    preview = commands.python("preview_quantization.py", "--evaluate", "OTHER_VIDEO", "--search")
    compiled = f"PULSAR2=docker:IMAGE {commands.pipeline}"
    parts = {
        "clip": clip,
        "patches": clip if clip.value is None else Part(patch_image(*clip.value)),
        "fidelity": fidelity,
        "maps": unseen or error_maps(workdir, *clip.value, fidelity.value, verify),
        "calibration": manifest if manifest.value is None else Part(calibration_sheet(calib, manifest.value)),
        "preview": preview_part(checkpoint, workdir, clip, preview),
        "checks": read_part(read_outcome, preflight, commands.python("preflight.py")),
        "probe": probe_part(checkpoint, workdir, commands.python("probe_build.py")),
        "axmodel": axmodel_part(workdir, compiled),
        "steps": read_part(read_steps, workdir / STEPS, commands.pipeline),
        "build": read_part(read_text, workdir / LEFT_TO_DO, commands.pipeline),
    }
    found = findings(parts)
    return parts | {
        "name": checkpoint.name,
        "vision": checkpoint.config.vision,
        "text_model": checkpoint.config.text,
        "text_command": f"{verify} --generate",
        "ratios": RATIOS,
        "findings": found,
        "verdict": worst(found),
        "frames": list(frames(*clip.value)) if clip.value else [],
        "amount": progress.format_bytes,
        "cosine": format_cosine,
        "shell_line": shell_line,
        "shorten": shorten,
        "figure": amount,
    }


def read_clip(checkpoint: Checkpoint, workdir: Path, commands: Commands) -> Part[tuple[Capture, np.ndarray]]:
    """The capture and its frames, uint8 (2·T, H, W, 3), turned back from the patch images."""
    command = commands.python("run_video_by_sec.py", "--video", *commands.source)
    part = read_part(lambda path: read_capture(path.parent), workdir / CAPTURE, command)
    if part.value is None:
        return part
    capture = part.value
    if capture.checkpoint != checkpoint.name:
        return Part(None, f"The clip was run through {capture.checkpoint}, not through {checkpoint.name}.", command)
    try:
        return Part((capture, read_pixels(workdir, capture)))
    except InputError as error:
        return Part(None, f"{error}.", command)


def read_current(path: Path, clip: Part[tuple[Capture, np.ndarray]]) -> Fidelity:
    """What the gate said of the clip and the graphs that are in the work directory.

    Raises:
        InputError: there is no record, no clip, or the record is about other files.
    """
    fidelity = read_fidelity(path)
    if clip.value is None:
        raise InputError(f"{path.name} is about a clip that cannot be shown")
    if problem := fidelity.stale(path.parent, clip.value[0]):
        raise InputError(f"{path.name} is about other files: {problem}")
    return fidelity


def frames(capture: Capture, pixels: np.ndarray) -> Iterator[dict[str, Any]]:
    """The frames as the model sees them, with their numbers in the source and their times."""
    from PIL import Image

    # Both ends are sampled, so the last index gives the length of the clip and with it the source's rate.
    rate = capture.sample_fps * (capture.indices[-1] + 1) / len(capture.indices)
    for number, index in enumerate(capture.indices[:MOST_FRAMES]):
        step, slot = divmod(number, TEMPORAL_PATCH_SIZE)
        picture = unpatchify(np.asarray(pixels[step : step + 1]), *capture.size)[slot]
        uri = data_uri(shrink(Image.fromarray(picture), THUMBNAIL))
        yield {"uri": uri, "index": index, "seconds": index / rate, "step": step}


def patch_image(capture: Capture, pixels: np.ndarray) -> dict[str, Any]:
    """The first step: its frames read from the source again, its patch image, and the image turned back."""
    from PIL import Image

    first = np.asarray(pixels[:1])
    inverse = unpatchify(first, *capture.size)
    result = {
        "inverse": [data_uri(Image.fromarray(frame), lossless=True) for frame in inverse],
        "image": data_uri(Image.fromarray(first[0, :PATCH_ROWS]), lossless=True),
        "rows": first.shape[1],
        "shown": min(first.shape[1], PATCH_ROWS),
        "source": [],
        "equal": None,
        "problem": "",
    }
    try:
        source = read_source(capture, TEMPORAL_PATCH_SIZE)
    except (InputError, OSError) as error:
        return result | {"problem": str(error)}
    result["source"] = [data_uri(Image.fromarray(frame), lossless=True) for frame in source]
    return result | {"equal": bool((source == inverse).all())}


def read_source(capture: Capture, count: int) -> np.ndarray:
    """The first frames of the clip's source, decoded and resized anew: uint8 (count, H, W, 3).

    Raises:
        InputError: the source is not there any more, or holds fewer frames.
    """
    from qwen_vl_axera.frames.media import VideoFrames, load_clip
    from qwen_vl_axera.frames.video import VideoFile

    paths = [Path(path) for path in capture.source]
    if missing := next((path for path in paths if not path.exists()), None):
        raise InputError(f"The source {missing} is not there any more.")
    if capture.kind == "video":
        pictures = VideoFrames(VideoFile(paths[0]), tuple(capture.indices[:count]))
    else:
        pictures = load_clip(paths, fps=capture.sample_fps).frames
    arrays = [frame_to_array(picture, capture.size) for picture in islice(pictures, count)]
    if not arrays:
        raise InputError("The source holds no frames any more.")
    return np.stack(arrays + arrays[-1:] * (count - len(arrays)))


def format_cosine(value: float) -> str:
    """A cosine for people: close to one, what it lacks says more than a row of nines."""
    lack = 1 - value
    if not abs(lack) < 1e-4:
        return f"{value:.5f}"
    return "1" if abs(lack) < FLOOR else f"1 − {lack:.1e}" if lack > 0 else f"1 + {-lack:.1e}"
