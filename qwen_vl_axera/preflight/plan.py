"""Is everything in place for the NPU compiler? Nothing expensive starts that can't finish.

What is checked can be known before; what the compiler itself needs in memory and on disk is not documented, and
the numbers below that say so are inferences.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_vl_axera.board.costs import CARD, GIB, MEDIA_TOKENS, Case, Costs, Model, costs
from qwen_vl_axera.board.timing import late_clip
from qwen_vl_axera.calibration.manifest import read_manifest
from qwen_vl_axera.checkpoint.config import load_config as load_checkpoint_config
from qwen_vl_axera.checkpoint.config import model_name, package_place
from qwen_vl_axera.checkpoint.expected import text_tensors
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.compiler.coherence import Target, coherence_problems
from qwen_vl_axera.compiler.pulsar2 import version
from qwen_vl_axera.compiler.schema import BuildConfig, load_config
from qwen_vl_axera.compiler.tool import VARIABLE, find_tool
from qwen_vl_axera.contract import (
    ANSWER,
    ARCHIVE,
    CALIB,
    CALIB_MANIFEST,
    CAPTURE,
    CHIP,
    CHUNK,
    DEMO_CLIP,
    DEMO_MODEL,
    DESCRIBE,
    INPUTS,
    KV_CACHE_LEN,
    PREFILL_LEN,
    WEIGHT_TYPES,
    GraphSpec,
    graph_stem,
)
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.graph.files import video_stems
from qwen_vl_axera.oracle.record import read_capture
from qwen_vl_axera.preflight.archive import Archive, archive_checks, read_archive
from qwen_vl_axera.preflight.checkpoint import checkpoint_checks
from qwen_vl_axera.preflight.checks import Check, guarded
from qwen_vl_axera.preflight.graph import external_bytes, graph_checks
from qwen_vl_axera.preflight.machine import disk_checks, memory_checks

ROOT = Path(__file__).resolve().parents[2]
CHUNKED_MOST = 1152  # tokens of the prompt that the vendor's own chunked models take
OTHER_CLIPS = (((308, 308), 8), ((252, 420), 16), ((448, 448), 1))  # sizes and frames shown for comparison
CONFIGS = {"pixels": ROOT / "config_video.json", "normalized": ROOT / "config_video_normalized.json"}


@dataclass(frozen=True)
class Plan:
    """What is about to be built.

    Attributes:
        checkpoint: its directory.
        workdir: what the steps before left.
        config: the build configuration; None: the repository's, as the graph's input needs it.
        graph: the ONNX file; None: what export.py wrote.
        prompt: the question.
        prefill_len: tokens of one prefill run.
        kv_cache_len: tokens of the cache.
        last_kv_cache_len: with several, the largest bounds the prompt.
        weight_type: of the language model's layers.
        chip: target hardware.
        out: what goes to the board; None: beside the checkpoint.
        tool: where the compiler is, as in PULSAR2; None: PATH.
    """

    checkpoint: Path
    workdir: Path
    config: Path | None = None
    graph: Path | None = None
    prompt: str = ""
    prefill_len: int = PREFILL_LEN
    kv_cache_len: int = KV_CACHE_LEN
    last_kv_cache_len: Sequence[int] = ()
    weight_type: str = WEIGHT_TYPES[0]
    chip: str = CHIP
    out: Path | None = None
    tool: str | None = None

    @property
    def package(self) -> Path:
        """OUT."""
        return self.out or package_place(self.checkpoint, self.workdir)


class Preflight:
    """Runs the checks of a plan. What one finds, the next ones use."""

    def __init__(self, plan: Plan):
        self.plan, self.workdir = plan, Path(plan.workdir)
        self.checkpoint: Checkpoint | None = None
        self.graph: Path | None = None
        self.spec: GraphSpec | None = None
        self.input_shape: tuple[int, ...] | None = None
        self.tensor_names: frozenset[str] | None = None
        self.graph_bytes = 0  # weights included
        self.config: BuildConfig | None = None
        self.archive: Archive | None = None
        self.text_tokens: int | None = None  # of the prompt, beside the visual ones
        self.board: list[Costs] = []

    def run(self) -> Iterator[Check]:
        """Every check, in the order of the chain.

        Raises:
            InputError: the checkpoint or the work directory is no directory at all.
        """
        for path, what in ((self.plan.checkpoint, "a Qwen2.5-VL checkpoint"), (self.workdir, "the steps' files")):
            if not path.is_dir():
                raise InputError(f"{path}: expected a directory with {what}, found none")
        yield from guarded("checkpoint", "download the checkpoint again", self._checkpoint)
        yield from guarded("graph", "run export.py CKPT video", self._graph)
        yield from guarded("config", "correct the file", self._load_config)
        yield from guarded("archive", "run get_calib.py", self._archive)
        yield from guarded("config", "correct the file", self._coherence)
        yield from guarded("prompt", "", self._prompt)
        yield from guarded("board", "", self._board)
        yield from guarded("disk", "", self._disk)
        yield from guarded("memory", "", self._memory)
        yield from guarded("compiler", f"correct {VARIABLE}", self._compiler)

    def _checkpoint(self) -> Iterator[Check]:
        self.checkpoint = Checkpoint(self.plan.checkpoint)
        yield from checkpoint_checks(self.checkpoint)

    def _graph(self) -> Iterator[Check]:
        from qwen_vl_axera.graph.files import load_graph, read_metadata, read_spec

        self.graph = self.plan.graph or find_graph(model_name(self.plan.checkpoint), self.workdir)
        model = load_graph(self.graph)
        self.spec = read_spec(model, self.graph)
        if model.graph.input:
            self.input_shape = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
        names = [node.name for node in model.graph.node]
        names += [name for node in model.graph.node for name in (*node.input, *node.output)]
        self.tensor_names = frozenset(names)
        self.graph_bytes = self.graph.stat().st_size + external_bytes(model)
        if self.checkpoint:
            yield from graph_checks(self.checkpoint, model, self.spec, read_metadata(model), self.graph, self.workdir)

    @property
    def contract(self) -> str:
        return self.spec.input if self.spec else INPUTS[0]

    def _load_config(self) -> Iterator[Check]:
        path = self.plan.config or CONFIGS[self.contract]
        self.config = load_config(path)
        yield Check("config schema", "ok", f"{path.name}: every field is known")

    def _archive(self) -> Iterator[Check]:
        entries = self.config.quant.input_configs if self.config else []
        path = self.workdir / (entries[0].calibration_dataset if entries else f"{CALIB}/{ARCHIVE}")
        if not path.is_file():
            yield Check("archive", "failed", f"{path} is missing", "run get_calib.py")
            return
        self.archive = read_archive(path, self._size(path))
        yield from archive_checks(self.archive, self.contract, self.input_shape, path)
        yield from self._origin(path)

    def _origin(self, archive: Path) -> Iterator[Check]:
        """What get_calib.py takes when it is not told otherwise shows nothing that a real model will see."""
        if not (archive.parent / CALIB_MANIFEST).is_file() or self.plan.checkpoint.resolve() == DEMO_MODEL:
            return
        samples = read_manifest(archive.parent).samples
        sources = {Path(source).resolve() for sample in samples for source in sample.source}
        if sources == {DEMO_CLIP}:
            detail = "every sample is a frame of the demo clip: its ranges fit no real scene"
            yield Check(
                "archive origin", "warning", detail, "run get_calib.py --inputs with your own clips and pictures"
            )

    def _size(self, archive: Path) -> tuple[int, int] | None:
        if self.spec:
            return self.spec.size
        manifest = archive.parent / CALIB_MANIFEST
        return read_manifest(archive.parent).size if manifest.is_file() else None

    def _coherence(self) -> Iterator[Check]:
        if self.config is None:
            return
        archive = self.archive
        target = Target(
            contract=self.contract,
            sample_format=archive.format if archive else "image" if self.contract == "normalized" else "numpy",
            sample_values=archive.values if archive and archive.values in ("pixels", "normalized") else self.contract,
            num_samples=archive.num_samples if archive else None,
            tensor_names=self.tensor_names,
            graph_bytes=self.graph_bytes,
            chip=self.plan.chip,
        )
        problems = coherence_problems(self.config, target)
        for problem in problems:
            status = "failed" if problem.fatal else "warning"
            yield Check(f"config: {problem.name}", status, f"{problem.where}: {problem.symptom}", problem.remedy)
        if not any(problem.fatal for problem in problems):
            yield Check("config coherence", "ok", f"fits a graph of {self.contract} and the archive")

    def _prompt(self) -> Iterator[Check]:
        from qwen_vl_axera.language.chat import prompt_token_count

        plan = self.plan
        if not os.path.lexists(self.workdir / CAPTURE):
            remedy = "run run_video_by_sec.py CKPT --video PATH"
            yield Check("prompt", "warning", f"not counted: no {CAPTURE} says how long the clip is", remedy)
            return
        capture = read_capture(self.workdir)
        count = prompt_token_count(plan.checkpoint, plan.prompt or DESCRIBE, capture.num_tokens)
        self.text_tokens = count - capture.num_tokens
        room = max([plan.prefill_len, *plan.last_kv_cache_len])
        detail = f"{count} tokens, {capture.num_tokens} of them visual"
        if count > room:
            detail += f", do not fit the prefill of {room}"
            yield Check(
                "prompt", "failed", detail, f"set PREFILL_LEN={math.ceil(count / CHUNK) * CHUNK} or take fewer frames"
            )
        else:
            words = plan.prompt or DESCRIBE
            fixed = prompt_token_count(plan.checkpoint, "", capture.num_tokens)
            detail += f", fit the prefill of {room}: {room - fixed} tokens for the question, {words!r} takes"
            yield Check("prompt", "ok", f"{detail} {count - fixed}")
        tokens_per_second = load_checkpoint_config(plan.checkpoint).vision.tokens_per_second
        if problem := late_clip(capture, tokens_per_second, plan.kv_cache_len):
            yield Check("clip length", "warning", problem, "take frames closer together, or a larger KV_CACHE_LEN")
        left = plan.kv_cache_len - count
        if left < 0 or room > plan.kv_cache_len:
            detail = f"{max(count, room)} tokens do not fit {plan.kv_cache_len}"
        elif left < ANSWER:
            detail = f"{left} of {plan.kv_cache_len} tokens are left for the answer"
        else:
            yield Check("kv cache", "ok", f"{left} of {plan.kv_cache_len} tokens are left for the answer")
            return
        enough = math.ceil((max(count, room) + ANSWER + 1) / CHUNK) * CHUNK - 1
        status = "warning" if detail.endswith("answer") else "failed"
        yield Check("kv cache", status, detail, f"set KV_CACHE_LEN={enough}")

    def _board(self) -> Iterator[Check]:
        """Does it fit a card, and how long does an answer take? Also of other forms and clips, to choose from."""
        if self.checkpoint is None or self.spec is None:
            return
        self.board = [costs(self._model(), case) for case in self._cases()]
        if not self.board:
            return
        this = self.board[0]
        detail = f"{this.memory.value / GIB:.1f} GiB of the card's memory ({this.memory.grade})"
        if this.first_token_ms:
            first = this.first_token_ms
            detail += f", {first.value / 1e3:.1f} s to the first token ({first.grade})"
        detail += f", then {this.tokens_per_second.value:.1f} tokens a second ({this.tokens_per_second.grade})"
        if this.memory.value > CARD:
            remedy = "set WEIGHT_TYPE=s4, or take a smaller model or a card with more memory"
            yield Check("board", "warning", f"{detail}; a card of 8 GB leaves about {CARD / GIB:.0f} GiB", remedy)
        else:
            yield Check("board", "ok", detail)

    def _model(self) -> Model:
        config = self.checkpoint.config
        one = replace(config.text, num_hidden_layers=1)  # all are alike, and config.json may name any number
        parameters = {name: math.prod(shape) for name, shape in text_tensors(one, self.checkpoint.tower).items()}
        text = config.text
        return Model(
            tower=config.model_type,
            vision=sum(math.prod(shape) for shape in self.checkpoint.tower.stored_tensors(config.vision).values()),
            layers=text.num_hidden_layers,
            layer=sum(number for name, number in parameters.items() if name.startswith("model.layers.0.")),
            head=text.vocab_size * text.hidden_size,
            embedding=text.vocab_size * text.hidden_size,
            key_value=text.head_dim * text.num_key_value_heads,
        )

    def _cases(self) -> Iterator[Case]:
        """This run's, then the same clip with the other form of prefill, and common ones in chunks."""
        plan, vision = self.plan, self.checkpoint.config.vision
        size, frames = self.spec.size, 1
        if self.spec.mode == "video" and os.path.lexists(self.workdir / CAPTURE):
            frames = len(read_capture(self.workdir).indices)
        chunked = bool(plan.last_kv_cache_len)
        clips = [
            (tuple(side // vision.factor * vision.factor for side in sides), count) for sides, count in OTHER_CLIPS
        ]
        wanted = [(size, frames, chunked), (size, frames, not chunked), *((*clip, True) for clip in clips)]
        for number, (size, frames, chunked) in enumerate(dict.fromkeys(wanted)):
            rows, columns = vision.grid(size)
            clip = {"size": size, "frames": frames, "steps": math.ceil(frames / 2), "patches": rows * columns}
            visual = vision.output_shape(size)[0]
            text = MEDIA_TOKENS if self.text_tokens is None else self.text_tokens
            room = max(CHUNKED_MOST, math.ceil((clip["steps"] * visual + text) / CHUNK) * CHUNK)
            prefill, lengths = (CHUNK, tuple(range(CHUNK, room + 1, CHUNK))) if chunked else (PREFILL_LEN, ())
            if number == 0:
                prefill, lengths = plan.prefill_len, tuple(plan.last_kv_cache_len)
            cache = max([plan.kv_cache_len, *lengths])
            yield Case(
                **clip,
                visual=visual,
                text=text,
                prefill_len=prefill,
                chunks=lengths,
                kv_cache_len=cache,
                weight_type=plan.weight_type,
            )

    def _disk(self) -> Iterator[Check]:
        yield from disk_checks(self.workdir, self.plan.package, self.graph_bytes, self._language_bytes())

    def _language_bytes(self) -> int:
        """Bytes of the language model in 16 bits."""
        if self.checkpoint is None:
            return 0  # said before
        self.checkpoint.check_counts()
        return sum(
            2 * math.prod(shape) for shape in text_tensors(self.checkpoint.config.text, self.checkpoint.tower).values()
        )

    def _memory(self) -> Iterator[Check]:
        yield from memory_checks(self.graph_bytes)

    def _compiler(self) -> Iterator[Check]:
        tool = find_tool(self.plan.tool)
        if tool:
            yield Check("compiler", "ok", f"{tool.name}: {version(tool)}")
        else:
            remedy = f"set {VARIABLE} to a command or docker:IMAGE; the host steps do without"
            yield Check("compiler", "warning", tool.name, remedy)


def find_graph(name: str, workdir: Path) -> Path:
    """The graph that export.py wrote for Pulsar2: of one size, or of the captured one among several.

    Raises:
        InputError: there is none.
    """
    stems = [*video_stems(name, workdir), graph_stem(name, "image")]
    for stem in stems:
        if (workdir / f"{stem}.onnx").is_file():
            return workdir / f"{stem}.onnx"
    raise InputError(f"{workdir / stems[0]}.onnx is missing")


def plan_from_environment(**given) -> Plan:
    """A plan with the compiler that the environment names."""
    return Plan(**given, tool=os.environ.get(VARIABLE))
