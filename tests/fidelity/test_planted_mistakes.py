"""Each classic mistake must be caught: by the numeric gate, and many by what the demo model says.

    python -m pytest tests/fidelity/test_planted_mistakes.py -s                    prints the table
    PLANTED_CLIPS=12 PLANTED_TABLE=docs/planted_mistakes.md python -m pytest ...   more clips, and writes it

The oracle is transformers' tower; the truth of the answers is the clip generator's.
"""

import itertools
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench.render import rewrite_section
from demo.clips import PROMPTS, answer, make_clip, render
from preprocess import patchify
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.errors import CheckFailed
from qwen_vl_axera.fidelity.metrics import WORST, compare
from qwen_vl_axera.fidelity.record import GraphErrors
from qwen_vl_axera.fidelity.truth import Truth
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.language.chat import LanguageModel, build_prompt
from qwen_vl_axera.towers.qwen2_5_vl.layout import build_layout
from qwen_vl_axera.towers.qwen2_5_vl.reference import ReferenceTower
from tests.conftest import ROOT
from tests.planted import MISTAKES, Case, nothing

MODEL = ROOT / "assets" / "demo_model"
SIZE = (168, 168)
SECONDS_PER_STEP = 0.5  # two frames at 4 fps
CLIPS = int(os.environ.get("PLANTED_CLIPS", "3"))
CLIP_SEED = 77
COLOURS_THAT_SWAP = {"red", "blue", "yellow", "cyan"}  # red and blue swapped: into each other
QUESTIONS = {
    f"{kind} {language}": (kind, language, PROMPTS[kind, language][0])
    for kind, language in (("caption", "zh"), ("start", "en"), ("end", "zh"), ("box", "en"))
}
# What the answers must show by themselves: colour, layout, order, positions, scale.
SEEN_IN_ANSWERS = {
    "windows not reordered",
    "reverse order not undone",
    "red and blue swapped",
    "not normalised",
    "patch rows transposed",
    "temporal slots swapped",
    "frames reversed",
    "windows see each other",
    "float16 overflow",
}


class Bench:
    """Clips, graphs and models of the demo, and what the oracle says to each."""

    def __init__(self, directory: Path):
        checkpoint = Checkpoint(MODEL)
        self.layout = build_layout(checkpoint.config.vision, SIZE)
        graphs = {}
        for name, options in (
            ("pixels", {}),
            ("normalized", {"input": "normalized"}),
            ("dense", {"window_mode": "dense"}),
        ):
            (directory / name).mkdir()
            graphs[name] = export_vision(checkpoint, directory / name, sizes=[SIZE], **options)[0].path
        clips = (make_clip("test", CLIP_SEED, number) for number in itertools.count())
        self.clips = list(itertools.islice((clip for clip in clips if clip.colour in COLOURS_THAT_SWAP), CLIPS))
        self.cases = [
            Case(patchify(render(clip)), *graphs.values(), self.layout, checkpoint.config.vision) for clip in self.clips
        ]
        reference = ReferenceTower(checkpoint, checkpoint.config.vision)
        self.expected = [reference.run(case.pixels, self.layout.grid) for case in self.cases]
        self.exact = [reference.run_exact(case.pixels, self.layout.grid) for case in self.cases]
        self.model = LanguageModel(MODEL, "float32")
        self.answers = [self.ask(features) for features in self.expected]

    def ask(self, features: np.ndarray) -> dict[str, str]:
        steps = len(features) // self.layout.num_tokens
        answers = {}
        for name, (_, _, text) in QUESTIONS.items():
            grid_thw = (steps, *self.layout.grid)
            prompt = build_prompt(self.model.tokenizer, self.model.config, text, grid_thw, SECONDS_PER_STEP)
            try:
                answers[name] = self.model.text(self.model.generate(prompt, features, 24))
            except CheckFailed:  # features that are not finite
                answers[name] = ""
        return answers

    def gate(self, actual: list[np.ndarray]) -> tuple[GraphErrors, float] | None:
        """The errors in the clip where they are largest and the lowest token cosine of any, or None: too few tokens."""
        if any(one.shape != other.shape for one, other in zip(self.expected, actual, strict=True)):
            return None
        windows = [np.arange(self.layout.num_tokens)]
        clips = list(zip(self.exact, self.expected, actual, strict=True))
        errors = (Truth([0], exact[None], [want[None]]).errors(got[None], windows) for exact, want, got in clips)
        lowest = min(compare(want, got)["min_token_cosine"] for _, want, got in clips)
        return max(errors, key=lambda found: found.ratio), lowest

    def changed(self, actual: list[np.ndarray]) -> Counter:
        """How many clips' answers differ from the oracle's, by question."""
        changed = Counter(dict.fromkeys(QUESTIONS, 0))
        for said, features in zip(self.answers, actual, strict=True):
            heard = self.ask(features)
            changed.update(name for name in QUESTIONS if heard[name] != said[name])
        return changed


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def outcomes(bench):
    """Mistake -> (figures or None, changed answers); the table is printed when all have run."""
    rows: dict[str, tuple] = {}
    yield rows
    if len(rows) < len(MISTAKES):
        return
    text = table(rows)
    print("\n" + text)
    if target := os.environ.get("PLANTED_TABLE"):
        rewrite_section(Path(target), text.rstrip("\n"), "<!-- classic:begin -->", "<!-- classic:end -->")


def table(rows: dict[str, tuple]) -> str:
    lines = [
        f"{CLIPS} unseen clips, {len(QUESTIONS)} questions each; answers unlike those to transformers' features:",
        "",
        f"| mistake | gate | error / transformers' | lowest token cosine | {' | '.join(QUESTIONS)} |",
        f"|---|---|---|---|{'---|' * len(QUESTIONS)}",
    ]
    for name, (figures, changed) in rows.items():
        if figures is None:
            numbers = ["caught: wrong number of tokens", "–", "–"]
        else:
            errors, lowest = figures
            ratio = "not finite" if errors.ratio == WORST else f"{errors.ratio:.3g}"
            numbers = ["caught" if errors.exceeded else "passes", ratio, f"{lowest:.6f}"]
        cells = [f"{changed[question]}/{CLIPS}" for question in QUESTIONS]
        lines.append(f"| {name} | {' | '.join([*numbers, *cells])} |")
    return "\n".join(lines) + "\n"


def test_the_demo_model_answers_truthfully(bench):
    """Without this the answers would prove nothing: the model sees what the generator drew."""
    truths = [
        said[name] == answer(clip, kind, language)
        for clip, said in zip(bench.clips, bench.answers, strict=True)
        for name, (kind, language, _) in QUESTIONS.items()
        if kind != "box"  # tenths: one digit off is common and no mistake of the conversion
    ]
    assert np.mean(truths) >= 0.95


def test_without_a_mistake_everything_passes(bench, outcomes):
    actual = [nothing(case) for case in bench.cases]
    figures, changed = bench.gate(actual), bench.changed(actual)
    outcomes["none"] = figures, changed
    assert not figures[0].exceeded, figures
    assert not any(changed.values())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_caught(bench, outcomes, mistake):
    actual = [MISTAKES[mistake](case) for case in bench.cases]
    figures, changed = bench.gate(actual), bench.changed(actual)
    outcomes[mistake] = figures, changed
    assert figures is None or figures[0].exceeded, f"the gate lets {mistake} pass: {figures}"
    if mistake in SEEN_IN_ANSWERS:
        assert any(changed.values()), f"{mistake} left every answer as it was"
