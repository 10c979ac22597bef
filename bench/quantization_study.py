"""What quantisation does to the demo model and to checkpoints derived from it: answers, and calibration samples.

    python bench/quantization_study.py [--clips 256] [--output docs/quantization.json] [--docs docs/quantization.md]

Three checkpoints: the demo model; one whose residual stream is rotated into the basis of its own variance; one with
planted massive tokens (bench/witnesses.py). Answers: every question about every clip under each setting, right to the
last token. Samples: the loss of a setting against the number of calibration samples, from as many clips or from one.
Remedies: the residual stream rotated, loud channels smoothed, spiky hidden units carved.
Writes: --output; with --docs the tables between the file's markers. Takes about 10 minutes on two cores.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qwen_vl_axera import cli, progress

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL, DEMO_VIDEO, SIZE = ROOT / "assets" / "demo_model", ROOT / "assets" / "demo.mp4", (168, 168)
MODELS = {"demo model": None, "rotated into its PCA basis": "pca", "massive tokens planted": "massive"}
CALIBRATION_CLIP, SEARCH_CLIP = 200_000, 300_000  # of the unseen split, beyond what answers are measured on
CALIBRATION_SAMPLES, SEARCH_CLIPS = 32, 4
SAMPLE_COUNTS = (1, 2, 4, 8, 16, 32, 64)
JUDGED_CLIPS, DRAWS = 8, 3
CARVED_UNITS = 8  # hidden units of each block
BEGIN, END = "<!-- study:begin -->", "<!-- study:end -->"


def clip_steps(first: int, count: int) -> list[np.ndarray]:
    """The graph inputs of some clips' steps, four a clip."""
    from demo import clips
    from preprocess import frames_to_patches, to_graph_input

    steps = []
    for number in range(first, first + count):
        frames = clips.render(clips.make_clip("test", clips.DEMO_SEED, number))
        steps += [to_graph_input(step) for step in frames_to_patches(list(frames), SIZE)]
    return steps


def near_steps(number: int, count: int) -> list[np.ndarray]:
    """Steps of one clip, frames that follow each other closely."""
    from demo import clips
    from preprocess import frames_to_patches, to_graph_input

    frames = clips.render(clips.make_clip("test", clips.DEMO_SEED, number), 2 * count)
    return [to_graph_input(step) for step in frames_to_patches(list(frames), SIZE)]


def with_full_range(steps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Samples whose range is that of pixels, as get_calib.py makes it."""
    first = steps[0].copy()
    first[0, 0, 0, 0], first[0, 2, 0, 0] = 0, 255
    return [first, *steps[1:]]


class Subject:
    """A checkpoint, exported, with ranges and the settings that it is judged under."""

    def __init__(self, directory: Path, workdir: Path):
        from qwen_vl_axera.checkpoint.tensors import Checkpoint
        from qwen_vl_axera.graph.export import export_vision
        from qwen_vl_axera.preflight.plan import find_graph
        from qwen_vl_axera.quantization.network import Network

        self.directory, self.workdir = directory, workdir
        workdir.mkdir()
        export_vision(Checkpoint(directory), workdir, sizes=[SIZE])
        self.network = Network(find_graph(directory.name, workdir))

    def simulation(self, samples: Sequence[np.ndarray], steps: Sequence[np.ndarray]):
        from qwen_vl_axera.quantization.observers import calibrate
        from qwen_vl_axera.quantization.simulation import Simulation

        return Simulation(self.network, calibrate(self.network, with_full_range(samples)), steps)

    def plans(self) -> dict[str, Any]:
        """Name -> plan: the vendor's recipe, the mix that a search on other clips finds, all at 8 bits."""
        from qwen_vl_axera.quantization.plan import uniform
        from qwen_vl_axera.quantization.search import TARGET_LOSS, search

        samples = clip_steps(CALIBRATION_CLIP, CALIBRATION_SAMPLES // 4)
        simulation = self.simulation(samples, clip_steps(SEARCH_CLIP, SEARCH_CLIPS))
        found = search(simulation, simulation.run(None).tokens, TARGET_LOSS, self.workdir / "search.json", "study")
        return {
            "vendor (all at 16 bits)": uniform(self.network, "U16"),
            "mixed": found.plan,
            "all at 8 bits": uniform(self.network, "U8"),
        }


def answers(subject: Subject, plans: dict[str, Any], clips: int) -> list[dict[str, Any]]:
    """Accuracy by question and the features' cosine under each setting."""
    import torch

    from demo import evaluation
    from demo.clips import KINDS, LANGUAGES, PROMPTS, answer
    from qwen_vl_axera.quantization.losses import figures
    from qwen_vl_axera.quantization.simulation import mac8

    simulation = subject.simulation(
        clip_steps(CALIBRATION_CLIP, CALIBRATION_SAMPLES // 4), clip_steps(evaluation.FIRST_CLIP, clips)
    )
    tokens = {"float": simulation.reference} | {name: simulation.run(plan).tokens for name, plan in plans.items()}
    examiner, network = evaluation.Examiner(subject.directory), evaluation.load_network(subject.directory)
    made = [clip for batch, _ in evaluation.clip_batches(clips) for clip in batch]
    rows = []
    with progress.stage("answers", len(tokens) * clips * len(PROMPTS), unit="answer") as stage:
        for name, steps in tokens.items():
            features = torch.cat(list(steps)).reshape(clips, -1, steps[0].shape[-1])
            right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
            for start in range(0, clips, evaluation.BATCH):
                batch = slice(start, start + evaluation.BATCH)
                for kind in KINDS:
                    for language in LANGUAGES:
                        truth = [answer(clip, kind, language) for clip in made[batch]]
                        right[kind] += answered(network, examiner, features[batch], PROMPTS[kind, language][0], truth)
                        stage.advance(len(truth))
            row = {"setting": name, "mac8": mac8(subject.network, plans[name]) if name in plans else None}
            row |= {kind: float(np.mean(values)) for kind, values in right.items()}
            rows.append(row | figures(torch.cat(list(simulation.reference)), torch.cat(list(steps))))
    return rows


def answered(network, examiner, features, text: str, truth: Sequence[str]) -> list[bool]:
    """Whether greedy decoding would say the truth to the last token: one pass over it instead of a pass a token.

    Args:
        network: `demo.network.DemoNetwork`, the language model.
        examiner: `demo.evaluation.Examiner`, for the prompt.
        features: float32 (B, 144, hidden).
        text: the question.
        truth: the right answer about each clip.
    """
    import torch

    ids, positions, following = examiner.prompt(text)
    end = examiner.ids["eos_token_id"]
    wanted = [[*examiner.tokenizer(answer)["input_ids"], end] for answer in truth]
    longest = max(map(len, wanted))
    padded = torch.tensor([row + [end] * (longest - len(row)) for row in wanted])  # (B, A)
    counted = torch.tensor([[number < len(row) for number in range(longest)] for row in wanted])
    prompt = torch.tensor(ids)
    with torch.inference_mode():
        asked = network.model.embed_tokens(prompt).expand(len(truth), -1, -1).clone()
        asked[:, prompt == examiner.ids["video_token_id"]] = features
        x = torch.cat([asked, network.model.embed_tokens(padded[:, :-1])], 1)
        later = torch.arange(following, following + longest - 1).expand(3, len(truth), -1)
        position_ids = torch.cat([torch.from_numpy(positions).expand(-1, len(truth), -1), later], -1)
        mask = torch.full((x.shape[1], x.shape[1]), -1e4).triu(1)
        said = network.logits(network.model(x, position_ids, mask)[:, len(ids) - 1 :]).argmax(-1)
    return ((said == padded) | ~counted).all(1).tolist()


def sample_counts(subject: Subject, plan: Any) -> list[dict[str, Any]]:
    """The loss of a setting against the number of samples: mean and worst of several draws."""
    from qwen_vl_axera.quantization.losses import damage

    steps = clip_steps(SEARCH_CLIP + 1000, JUDGED_CLIPS)
    rows = []
    with progress.stage("samples", len(SAMPLE_COUNTS) * DRAWS * 2, unit="calibration") as stage:
        for count in SAMPLE_COUNTS:
            row: dict[str, Any] = {"samples": count}
            for kind in ("diverse", "near"):
                losses = []
                for draw in range(DRAWS):
                    first = CALIBRATION_CLIP + 1000 * (draw + 1)
                    # One step of each clip, the second of its four; or all of one clip.
                    samples = clip_steps(first, count)[1::4] if kind == "diverse" else near_steps(first, count)
                    simulation = subject.simulation(samples, steps)
                    losses.append(damage(simulation.reference, simulation.run(plan).tokens))
                    stage.advance()
                row[kind] = {"mean": float(np.mean(losses)), "worst": float(np.max(losses))}
            rows.append(row)
    return rows


def remedies(scratch: Path) -> list[dict[str, Any]]:
    """What changes to the weights that are exact in float do to the loss of four settings, and to the search."""
    from bench.witnesses import make_witness

    samples, steps = clip_steps(CALIBRATION_CLIP, CALIBRATION_SAMPLES // 4), clip_steps(SEARCH_CLIP, JUDGED_CLIPS)
    rows = []
    for kind in ("massive", "channels"):
        plain = scratch / f"{kind}-plain"
        make_witness(DEMO_MODEL, plain, kind, DEMO_VIDEO, SIZE)
        subjects = {"none": Subject(plain, scratch / f"work-{plain.name}")}
        for remedy in ("rotated", "smoothed"):
            directory = scratch / f"{kind}-{remedy}"
            make_witness(plain, directory, remedy, DEMO_VIDEO, SIZE)
            subjects[remedy] = Subject(directory, scratch / f"work-{directory.name}")
        subjects["carved"] = carved(Subject(plain, scratch / f"work-{kind}-carved"), samples)
        reference = None
        for remedy, subject in subjects.items():
            row, tokens = judged(subject, samples, steps)
            reference = tokens if reference is None else reference
            difference = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(reference, tokens, strict=True))
            rows.append({"checkpoint": kind, "remedy": remedy, "float_difference": difference} | row)
    return rows


def judged(subject: Subject, samples: Sequence[np.ndarray], steps: Sequence[np.ndarray]) -> tuple[dict[str, Any], list]:
    """The cosines of four settings and the largest share of 8 bits that the search finds; and the float tokens."""
    from qwen_vl_axera.quantization.plan import uniform
    from qwen_vl_axera.quantization.search import TARGET_LOSS, mixed_plan, search
    from qwen_vl_axera.quantization.simulation import mac8

    simulation = subject.simulation(samples, steps)
    plans = {
        "weights alone": None,
        "all at 16 bits": uniform(subject.network, "U16"),
        "linear layers at 8 bits": mixed_plan(subject.network, []),
        "all at 8 bits": uniform(subject.network, "U8"),
    }
    found = {name: simulation.setting(name, plan, None) for name, plan in plans.items()}
    cosines = {name: [entry["mean_token_cosine"], entry["centred_cosine"]] for name, (entry, _) in found.items()}
    floor = found["weights alone"][1].tokens
    mix = search(simulation, floor, TARGET_LOSS, subject.workdir / "search.json", "study")
    row = {"cosines": cosines, "mac8": mac8(subject.network, mix.plan), "wide": mix.wide, "reached": mix.reached}
    return row, simulation.reference


def carved(subject: Subject, samples: Sequence[np.ndarray]) -> Subject:
    """The same checkpoint with the spikiest hidden units of every block in layers of their own."""
    from bench.quantization_carving import carve, spikiest
    from qwen_vl_axera.quantization.execution import Execution, batches
    from qwen_vl_axera.quantization.network import Network

    hidden = {block: f"blocks.{block}.mlp.mul_1" for block in subject.network.block_outputs}
    (batch,) = batches(samples, len(samples))
    seen = Execution(subject.network).run(batch, keep=hidden.values())
    units = {block: spikiest(np.concatenate(seen[name]), CARVED_UNITS) for block, name in hidden.items()}
    path = subject.network.path
    subject.network = Network(carve(path, path.with_stem(f"{path.stem}_carved"), units))
    return subject


def tables(study: dict[str, Any]) -> str:
    """The study as Markdown."""
    lines = [
        f"{study['clips']} unseen clips, each question in two languages: share of answers right to the last token.",
        "Cosine: merged tokens to the float network.",
        "",
        "| checkpoint | setting | 8-bit MACs | caption | start | end | box | mean cosine | lowest |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, rows in study["answers"].items():
        for row in rows:
            share = "" if row["mac8"] is None else f"{row['mac8']:.1%}"
            right = " | ".join(f"{row[kind]:.3f}" for kind in ("caption", "start", "end", "box"))
            cosines = f"{row['mean_token_cosine']:.5f} | {row['min_token_cosine']:.4f}"
            lines.append(f"| {model} | {row['setting']} | {share} | {right} | {cosines} |")
    columns = [f"{model}, {kind}" for model in study["samples"] for kind in ("diverse", "near")]
    lines += [
        "",
        f"Loss of the mixed setting (1 − cosine, the worse of plain and centred) on {4 * JUDGED_CLIPS} steps against",
        f"the number of calibration samples, mean (worst) of {DRAWS} draws; diverse: each of another clip; near: all",
        "of one.",
        "",
        "| samples | " + " | ".join(columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for number, count in enumerate(SAMPLE_COUNTS):
        cells = [rows[number][kind] for rows in study["samples"].values() for kind in ("diverse", "near")]
        lines.append(f"| {count} | " + " | ".join(f"{cell['mean']:.4f} ({cell['worst']:.4f})" for cell in cells) + " |")
    settings = list(study["remedies"][0]["cosines"])
    lines += [
        "",
        "Changes to the weights that are exact but for rounding (float: the largest difference of a token to those of",
        "the checkpoint as it is): mean / centred cosine, and the share that the search leaves at 8 bits within 0.005",
        "of the row's own floor, the weights alone. Rotated: the residual stream in a random basis. Smoothed: loud",
        f"channels in front of linear layers divided by up to 8. Carved: the {CARVED_UNITS} spikiest of the 256 hidden",
        "units of every block in layers of their own.",
        "",
        "| planted | remedy | float | " + " | ".join(settings) + " | 8-bit MACs found |",
        "|---" * (4 + len(settings)) + "|",
    ]
    for row in study["remedies"]:
        cells = " | ".join(f"{mean:.4f} / {centred:.4f}" for mean, centred in row["cosines"].values())
        share = f"{row['mac8']:.1%}" if row["reached"] else "none"
        lines.append(f"| {row['checkpoint']} | {row['remedy']} | {row['float_difference']:.0e} | {cells} | {share} |")
    return "\n".join(lines)


def build_parser():
    parser = cli.parser(__doc__)
    parser.add_argument("--clips", type=cli.positive, default=256, metavar="N", help="default: 256")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the figures as JSON")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="a document whose tables are to be replaced")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from bench.witnesses import make_witness
    from qwen_vl_axera.files import write_json

    study: dict[str, Any] = {"clips": args.clips, "answers": {}, "samples": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name, kind in MODELS.items():
            directory = DEMO_MODEL
            if kind:
                directory = Path(scratch) / kind
                make_witness(DEMO_MODEL, directory, kind, DEMO_VIDEO, SIZE)
            subject = Subject(directory, Path(scratch) / f"work-{kind}")
            plans = subject.plans()
            study["answers"][name] = answers(subject, plans, args.clips)
            if kind != "pca":  # it tells what the demo model tells
                study["samples"][name] = sample_counts(subject, plans["mixed"])
        study["remedies"] = remedies(Path(scratch))
    if args.output:
        write_json(args.output, study)
    if args.docs:
        from bench.render import rewrite_section

        rewrite_section(args.docs, tables(study), BEGIN, END)
    print(tables(study))
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
