"""Train the demo model from nothing: Qwen2.5-VL's architecture, two million parameters, on two cores.

    python demo/train.py OUT_DIR [--steps N] [--stop N] [--seed S] [--resume]
    python demo/train.py OUT_DIR --evaluate-only [--clips N]

Reads: nothing; clips are drawn as they are needed (demo/clips.py).
Writes: OUT_DIR/ config.json, model.safetensors (bf16), tokenizer files, README.md (the model card) and
OUT_DIR.training/ checkpoint.pt (every 250 steps, for --resume), log.jsonl, result.json. `--smoke` takes
two steps on two clips, to see that everything runs. Exit code 1: trained, but a target was missed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qwen_vl_axera import cli
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.files import read_json, require, write_json

VOCAB_SIZE = 512
STEPS, CLIPS, WITNESS_CLIPS, SMOKE = 4500, 1024, 256, 2


def build_parser():
    parser = cli.parser(__doc__)
    parser.add_argument("out", metavar="OUT_DIR", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"default {STEPS}")
    parser.add_argument("--stop", type=int, metavar="N", help="end after step N of the schedule of --steps")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="clips a step (default 16)")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default 2")
    parser.add_argument("--clips", type=int, default=CLIPS, metavar="N", help=f"to evaluate on (default {CLIPS})")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--evaluate-only", action="store_true", help="measure OUT_DIR again, train nothing")
    parser.add_argument("--smoke", action="store_true", help="two steps on two clips, no targets")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    for name in ("steps", "stop", "batch", "threads", "clips"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}, expected at least 1")
    if args.smoke:
        args.steps = args.batch = args.clips = SMOKE
    work = args.out.with_name(args.out.name + ".training")

    if args.evaluate_only:
        require(args.out / "model.safetensors", "demo/train.py without --evaluate-only")
        require(work / "training.json", "the training itself (it leaves OUT_DIR.training/ behind)")
    elif (args.out / "model.safetensors").exists() and not args.resume:
        raise InputError(f"{args.out} holds a model already: name another directory, remove it, or --resume")

    import torch

    torch.set_num_threads(args.threads)
    if not args.evaluate_only:
        _train(args, work)
    _evaluate(args, work)
    return 0


def _train(args, work: Path) -> None:
    from demo import checkpoint as demo_checkpoint
    from demo import clips as demo_clips
    from demo.batches import Prompts
    from demo.tokenizer import build_tokenizer
    from demo.training import Settings, read_log, train

    work.mkdir(parents=True, exist_ok=True)
    ids = build_tokenizer(args.out, demo_clips.all_texts(), VOCAB_SIZE)
    settings = Settings(steps=args.steps, batch=args.batch, seed=args.seed)
    prompts = Prompts(args.out, ids)
    network, done = train(settings, prompts, ids["vocab_size"], work, args.resume, args.stop)
    demo_checkpoint.save(network, ids, args.out)
    training = {name: getattr(args, name) for name in ("steps", "batch", "seed", "threads")}
    seconds = [line["seconds"] for line in read_log(work) if line["step"] == done]
    training |= {"done": done, "peak_rate": settings.peak_rate, "minutes": seconds[-1] / 60}
    write_json(work / "training.json", training | {"parameters": sum(p.numel() for p in network.parameters())})


def _evaluate(args, work: Path) -> None:
    import torch
    import transformers

    from demo import checkpoint as demo_checkpoint
    from demo.evaluation import evaluate, witness

    training = read_json(work / "training.json")
    witnesses = min(args.clips, WITNESS_CLIPS)
    result = {
        "clips": args.clips,
        "accuracy": evaluate(args.out, args.clips),
        "witness": witness(args.out, witnesses),
        "witness_clips": witnesses,
        "training": training,
        "parameters": training["parameters"],
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
    }
    write_json(work / "result.json", result)
    demo_checkpoint.write_card(args.out, result)
    for kind, languages in result["accuracy"].items():
        print(f"{kind:8}", "  ".join(f"{language} {values}" for language, values in languages.items()))
    for name, values in result["witness"].items():
        print(f"window order {name:12}", {kind: round(value, 4) for kind, value in values.items()})
    missed = demo_checkpoint.missed_targets(result["accuracy"])
    if missed and not args.smoke:
        raise CheckFailed("targets missed: " + "; ".join(missed))


if __name__ == "__main__":
    sys.exit(cli.run(main))
