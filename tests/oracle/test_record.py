"""capture.json: read as it was written, or refused where it contradicts itself."""

import json

import pytest

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import plain, write_record
from qwen_vl_axera.oracle.record import Capture, read_capture

CAPTURE = Capture((56, 84), (3, 4, 6), "frames", ["clip"], list(range(5)), 4.0, 0.5, [0, 2], "tiny", {"numpy": "2"})


def test_it_is_read_as_it_was_written(tmp_path):
    write_record(tmp_path / "capture.json", Capture, CAPTURE)
    assert read_capture(tmp_path) == CAPTURE
    assert CAPTURE.num_tokens == 3 * 2 * 3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": [56, 85]}, "multiples of 28"),
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
