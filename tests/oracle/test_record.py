"""What step 1 saved is read back whole, finite and fitting, or refused in one line."""

import json

import numpy as np
import pytest
import torch

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import plain, write_record
from qwen_vl_axera.frames.media import load_clip
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.oracle import record
from qwen_vl_axera.oracle.record import Capture, read_capture
from qwen_vl_axera.oracle.run import run_clip

CAPTURE = Capture((56, 84), (3, 4, 6), "frames", ["clip"], list(range(5)), 4.0, 0.5, "tiny", {"numpy": "2"}, [0, 2])


def test_it_is_read_as_it_was_written(tmp_path):
    write_record(tmp_path / "capture.json", Capture, CAPTURE)
    assert read_capture(tmp_path) == CAPTURE
    assert CAPTURE.num_tokens == 3 * 2 * 3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": [56, 85]}, "is not of size"),
        ({"size": [56, 56]}, "grid_thw [3, 4, 6] is not of size [56, 56]"),
        ({"size": [56]}, "size[1] is missing"),
        ({"grid_thw": [3, 6, 4]}, "grid_thw"),
        ({"grid_thw": [2, 4, 6]}, "5 indices do not make the 2 steps"),
        ({"indices": []}, "indices"),
        ({"indices": [0, 1, 2, 3, -1]}, "indices[4]"),
        ({"sample_fps": 0}, "sample_fps"),
        ({"sample_fps": "4"}, "sample_fps"),
        ({"sample_fps": 2.0}, "second_per_grid_ts"),
        ({"kind": "film"}, "kind should be 'video', 'frames' or 'images'"),
        ({"source": []}, "source"),
        ({"exact_steps": [0, 3]}, "exact_steps"),
        ({"exact_steps": [2, 0]}, "exact_steps"),
        ({"checkpoint": ""}, "checkpoint"),
        ({"frames": 8}, "frames is not known"),
    ],
)
def test_it_is_refused(tmp_path, changed, words):
    (tmp_path / "capture.json").write_text(json.dumps(plain(CAPTURE) | changed))
    with pytest.raises(InputError) as refused:
        read_capture(tmp_path)
    assert words in str(refused.value) and "run run_video_by_sec.py CKPT --video PATH again" in str(refused.value)


@pytest.fixture
def workdir(tiny, frames_dir, tmp_path):
    run_clip(tiny, tmp_path, load_clip([frames_dir]), (56, 84))
    return tmp_path


def read_all(workdir):
    capture = record.read_capture(workdir)
    record.read_pixels(workdir, capture)
    return record.read_oracle(workdir, capture), record.read_exact(workdir, capture)


def test_shapes(workdir):
    oracle, exact = read_all(workdir)
    assert (oracle.shape, oracle.dtype) == ((3, 6, 48), np.float32)
    assert (exact.shape, exact.dtype) == ((2, 6, 48), np.float64)


@pytest.mark.parametrize("name", ["vit_out.npy", "vit_exact.npy"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(workdir, name, value):
    values = np.load(workdir / name)
    values.flat[7] = value
    np.save(workdir / name, values)
    with pytest.raises(InputError, match=rf"{name} holds NaN or infinite values: run run_video_by_sec\.py again"):
        read_all(workdir)


@pytest.mark.parametrize("name", ["pixels.npy", "vit_out.npy", "vit_exact.npy"])
def test_a_file_of_another_capture_is_refused(workdir, name):
    values = np.load(workdir / name)
    np.save(workdir / name, values[..., ::-1])
    with pytest.raises(InputError, match=rf"about other files \({name} has changed\): run run_video_by_sec\.py again"):
        read_all(workdir)


def test_a_capture_that_names_no_files_is_refused(workdir):
    raw = json.loads((workdir / "capture.json").read_text())
    del raw["made_from"]
    (workdir / "capture.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"does not say what it was made from\): run run_video_by_sec\.py again"):
        read_all(workdir)


def test_a_layout_of_another_capture_is_refused(tiny, workdir):
    path = workdir / "rotary_pos_emb.pth"
    torch.save(torch.load(path, weights_only=True) * (1 + 1e-7), path)
    with pytest.raises(InputError, match=r"rotary_pos_emb\.pth has changed"):
        export_vision(tiny, workdir)


@pytest.mark.parametrize("name", ["rotary_pos_emb", "rotary_pos_emb all"])
def test_angles_that_are_not_finite_are_refused(tiny, workdir, name):
    path = workdir / "rotary_pos_emb.pth"
    angles = torch.load(path, weights_only=True)
    angles[slice(None) if "all" in name else (2, 3)] = float("nan")
    torch.save(angles, path)
    with pytest.raises(InputError, match=r"rotary_pos_emb\.pth holds NaN"):
        export_vision(tiny, workdir)


@pytest.mark.parametrize("steps", [[], [0], [0, 1, 2]])
def test_exact_steps_that_do_not_fit_are_refused(workdir, steps):
    raw = json.loads((workdir / "capture.json").read_text())
    (workdir / "capture.json").write_text(json.dumps(raw | {"exact_steps": steps}))
    with pytest.raises(InputError, match=r"vit_exact\.npy does not fit capture\.json"):
        read_all(workdir)


def test_a_capture_without_an_exact_answer_is_read_until_it_is_needed(workdir):
    raw = json.loads((workdir / "capture.json").read_text())
    del raw["exact_steps"]
    (workdir / "capture.json").write_text(json.dumps(raw))
    capture = record.read_capture(workdir)
    assert capture.exact_steps == []
    with pytest.raises(InputError, match=r"run run_video_by_sec\.py again"):
        record.read_exact(workdir, capture)


@pytest.mark.parametrize("change", [lambda exact: exact.astype(np.float32), lambda exact: exact[:, :-1]])
def test_exact_answers_of_another_kind_are_refused(workdir, change):
    np.save(workdir / "vit_exact.npy", change(np.load(workdir / "vit_exact.npy")))
    with pytest.raises(InputError, match=r"vit_exact\.npy does not fit"):
        read_all(workdir)
