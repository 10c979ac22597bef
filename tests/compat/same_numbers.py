"""The documented commands on the demo model and clip, and the numbers that they give under one transformers.

    python tests/compat/same_numbers.py DIR

Reads:  assets/demo_model, assets/demo.mp4.
Writes: what the commands write, into DIR, and numbers.json: versions, prompts, positions, answers. `compare`
        holds two such directories against each other; run.py does so for each version of transformers.
"""

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL, CLIP, SIZE = ROOT / "assets" / "demo_model", ROOT / "assets" / "demo.mp4", ("168", "168")
PROMPTS = ("描述这个视频.", "Describe this video.", "Where is the object at the end?")
MAX_NEW_TOKENS = 24

# float32 sums in another order; relative to the largest feature.
SAME_FEATURES = 1e-5
SAME_ANGLES = 1e-6
SAME_BYTES = ("pixels.npy", "hidden_states.pth", "cu_seqlens.pth", "cu_window_seqlens.pth", "window_index.pth")


def main(argv: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    directory = Path(argv[0])
    directory.mkdir(parents=True, exist_ok=True)
    run_commands(directory)
    (directory / "numbers.json").write_text(json.dumps(text_numbers(directory), indent=1), encoding="utf-8")
    return 0


def run_commands(directory: Path) -> None:
    """The first three steps, in this process: the imports take longer than the work."""
    import export
    import run_video_by_sec
    import test_onnx_video_by_sec

    common = [str(MODEL), "--workdir", str(directory)]
    text = ["--generate", "--dtype", "float32", "--max-new-tokens", str(MAX_NEW_TOKENS), "--prompt", *PROMPTS]
    for script, arguments in (
        (run_video_by_sec, [*common, "--video", str(CLIP), "--size", *SIZE, *text]),
        (export, [common[0], "video", *common[1:]]),
        (test_onnx_video_by_sec, [*common, *text]),
    ):
        code = script.main(arguments)
        if code:
            raise SystemExit(f"{script.__name__} ended with {code}")


def text_numbers(directory: Path) -> dict:
    """Token ids and positions of each prompt, and the answer's tokens, from the saved features."""
    from qwen_vl_axera.language.chat import LanguageModel, build_prompt
    from qwen_vl_axera.oracle.record import read_capture, read_oracle

    capture = read_capture(directory)
    features = np.array(read_oracle(directory, capture))
    numbers: dict = {"versions": capture.versions, "python": sys.version.split()[0], "text": {}}
    for dtype in ("float32", "bfloat16"):
        model = LanguageModel(MODEL, dtype)
        for text in PROMPTS:
            prompt = build_prompt(model.tokenizer, model.config, text, capture.grid_thw, capture.second_per_grid_ts)
            answer = model.generate(prompt, features.reshape(-1, features.shape[-1]), MAX_NEW_TOKENS)
            numbers["text"][f"{text} ({dtype})"] = {
                "input_ids": prompt.input_ids.tolist(),
                "position_ids": prompt.position_ids.tolist(),
                "answer": [token.id for token in answer],
                "probabilities": [token.probability for token in answer],
                "words": model.text(answer),
            }
    return numbers


def read_numbers(directory: Path) -> dict:
    return json.loads((directory / "numbers.json").read_text(encoding="utf-8"))


def compare(directory: Path, baseline: Path) -> dict[str, tuple[bool, str]]:
    """One version's results against another's: column of the table -> whether it holds, and what to show."""
    import torch

    results = {}
    same = [name for name in SAME_BYTES if (directory / name).read_bytes() == (baseline / name).read_bytes()]
    angles = [torch.load(where / "rotary_pos_emb.pth", weights_only=True) for where in (directory, baseline)]
    close = float((angles[0] - angles[1]).abs().max()) <= SAME_ANGLES
    ok = len(same) == len(SAME_BYTES) and close
    results["pixels, windows, angles"] = ok, "equal" if ok else "DIFFERENT"

    ours, theirs = (np.load(where / "vit_out.npy") for where in (directory, baseline))
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    results["tower's features, largest difference"] = difference <= SAME_FEATURES, f"{difference:.1e}"

    data = f"{MODEL.name}_vision.onnx.data"
    ok = (directory / data).read_bytes() == (baseline / data).read_bytes()
    results["exported weights"] = ok, "equal" if ok else "DIFFERENT"

    report = json.loads((directory / "fidelity.json").read_text(encoding="utf-8"))
    steps = [step["min_token_cosine"] for graph in report["graphs"] for step in graph["steps"]]
    results["ONNX: lowest token cosine"] = report["passed"], f"{min(steps):.7f}"

    mine, other = (read_numbers(where)["text"] for where in (directory, baseline))
    for column, keys in (
        ("prompt and positions", ("input_ids", "position_ids")),
        ("text, token by token", ("answer",)),
    ):
        count = sum(len(entry[keys[0]]) for entry in mine.values())
        ok = mine.keys() == other.keys() and all(mine[text][key] == other[text][key] for text in mine for key in keys)
        results[column] = ok, f"{count} tokens equal" if ok else "DIFFERENT"
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
