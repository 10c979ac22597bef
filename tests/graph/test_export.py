"""Step 2 as a user runs it: names, flags, what it compares with step 1, and what stays when it fails."""

import json
import pickle
import shutil
from functools import partial

import numpy as np
import onnx
import pytest
import torch

import export
from qwen_vl_axera.contract import GraphSpec
from qwen_vl_axera.fidelity.metrics import THRESHOLDS, compare, within
from qwen_vl_axera.fidelity.runtime import OnnxTower
from qwen_vl_axera.graph.files import read_metadata
from qwen_vl_axera.probe.run import write_probe
from qwen_vl_axera.towers.qwen2_5_vl import weights
from qwen_vl_axera.towers.qwen2_5_vl.reference import ReferenceTower
from tests.conftest import run_main
from tests.talking import capture_and_export, names

SIZE = (140, 252)
GRAPHS = {"tiny_vision.onnx", "tiny_vision_uint8.onnx", "tiny_vision.onnx.data"}
HOSTILE = '-it\'s a "model" $(x) 模型'


@pytest.fixture(scope="module")
def captured(tiny_dir, frames_dir, tmp_path_factory):
    """A work directory after step 1 (and 2)."""
    workdir = tmp_path_factory.mktemp("captured")
    capture_and_export(tiny_dir, workdir, frames_dir, SIZE)
    return workdir


@pytest.fixture
def workdir(captured, tmp_path):
    """A copy of it, without graphs."""
    copy = shutil.copytree(captured, tmp_path / "work")
    for name in GRAPHS:
        (copy / name).unlink()
    return copy


run = partial(run_main, export.main)


def contents(directory):
    return {name: (directory / name).read_bytes() for name in names(directory)}


def metadata(path):
    return read_metadata(onnx.load(path, load_external_data=False))


def assert_is_transformers_tower(tiny, path):
    height, width = metadata(path)["size"]
    grid = height // 14, width // 14
    patches = np.random.default_rng(3).integers(0, 256, (1, grid[0] * grid[1], 392, 3), dtype=np.uint8)
    figures = compare(ReferenceTower(tiny, tiny.config.vision).run(patches, grid), OnnxTower(path)(patches))
    assert within(figures, THRESHOLDS), figures


def test_the_documented_command(run_script, captured, tiny_dir, workdir):
    """From the work directory, without any flag; the same bytes as from the library."""
    before = names(workdir)
    done = run_script("export.py", tiny_dir, "video", cwd=workdir)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(workdir) == before | GRAPHS
    assert "tiny_vision.onnx: 140x252" in done.stdout
    assert len(done.stdout.splitlines()) == 2
    for name in GRAPHS:
        assert (workdir / name).read_bytes() == (captured / name).read_bytes(), name
    assert (workdir / "tiny_vision.onnx").stat().st_size < 200_000  # the weights lie apart


def test_paths_that_careless_scripts_stumble_over(capsys, monkeypatch, tiny, tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / HOSTILE)
    monkeypatch.chdir(tmp_path)
    flags = ("--size", 56, 84, "--workdir", f"./{HOSTILE} new/new work")
    code, _, error = run(capsys, f"./{HOSTILE}/", "video", *flags)
    assert (code, error) == (0, "")
    made = tmp_path / f"{HOSTILE} new" / "new work"
    assert names(made) == {name.replace("tiny", HOSTILE) for name in GRAPHS}
    assert_is_transformers_tower(tiny, made / f"{HOSTILE}_vision_uint8.onnx")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"window_mode": "grouped", "input": "pixels"}),
        (["--window-mode", "dense"], {"window_mode": "dense", "input": "pixels"}),
        (["--input", "normalized"], {"window_mode": "grouped", "input": "normalized"}),
    ],
)
def test_flags_reach_the_graph(capsys, tiny, tiny_dir, workdir, flags, expected):
    assert run(capsys, tiny_dir, "video", "--opset", 16, "--workdir", workdir, *flags)[0] == 0
    for name, uint8 in (("tiny_vision.onnx", False), ("tiny_vision_uint8.onnx", True)):
        found = metadata(workdir / name)
        expected_here = expected | {"uint8": uint8, "size": list(SIZE), "checkpoint": "tiny", "mode": "video"}
        assert {key: found[key] for key in expected_here} == expected_here
        assert onnx.load(workdir / name, load_external_data=False).opset_import[0].version == 16
        assert_is_transformers_tower(tiny, workdir / name)


def test_pictures_are_448_and_leave_the_video_graph_as_it_is(capsys, tiny, tiny_dir, captured, tmp_path):
    workdir = shutil.copytree(captured, tmp_path / "work")
    before = contents(workdir)
    code, out, _ = run(capsys, tiny_dir, "image", "--workdir", workdir)
    assert code == 0
    assert "448x448" in out
    new = {"tiny_vision_image.onnx", "tiny_vision_image_uint8.onnx"}
    assert names(workdir) == set(before) | new
    assert {name: data for name, data in contents(workdir).items() if name not in new} == before
    for name in (*new, "tiny_vision.onnx"):
        assert_is_transformers_tower(tiny, workdir / name)


def test_another_input_form_is_refused_and_leaves_the_video_graph_usable(capsys, tiny, tiny_dir, captured, tmp_path):
    """`--input` changes the folded weights: over the same data file they must not differ from graph to graph."""
    workdir = shutil.copytree(captured, tmp_path / "work")
    result = run(capsys, tiny_dir, "image", "--size", 56, 56, "--input", "normalized", "--workdir", workdir)
    refused(result, "another --input")
    assert_is_transformers_tower(tiny, workdir / "tiny_vision.onnx")


def test_the_weights_of_a_second_export_stay_as_they_are(capsys, tiny_dir, workdir):
    assert run(capsys, tiny_dir, "video", "--workdir", workdir)[0] == 0
    data = workdir / "tiny_vision.onnx.data"
    before = data.stat()
    assert run(capsys, tiny_dir, "image", "--size", 56, 56, "--workdir", workdir)[0] == 0
    assert (data.stat().st_ino, data.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_probe_is_no_obstacle_to_another_input(capsys, tiny, tiny_dir, workdir):
    assert run(capsys, tiny_dir, "video", "--workdir", workdir)[0] == 0
    write_probe(tiny, workdir, GraphSpec(tiny.tower.model_type, SIZE, probe=True))
    assert run(capsys, tiny_dir, "video", "--input", "normalized", "--workdir", workdir)[0] == 0


def test_several_sizes(capsys, tiny, tiny_dir, workdir):
    sizes = ("--size", 140, 252, "--size", 56, 84, "--size", 56, 84)
    code, out, _ = run(capsys, tiny_dir, "video", *sizes, "--workdir", workdir)
    assert code == 0
    made = {f"tiny_vision_{size}{suffix}.onnx" for size in ("140x252", "56x84") for suffix in ("", "_uint8")}
    assert {name for name in names(workdir) if name.startswith("tiny")} == made | {"tiny_vision.onnx.data"}
    assert len(out.splitlines()) == 4
    for name in made:
        assert_is_transformers_tower(tiny, workdir / name)


def refused(result, words, code=2):
    assert result[0] == code, result
    assert result[1] == ""
    assert len(result[2].splitlines()) == 1, result[2]
    assert words in result[2]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["video", "--size", "56", "56"], "run run_video_by_sec.py with --size 56 56"),
        (["video", "--size", "140", "250"], "multiples of 28"),
        (["video", "--size", "0", "28"], "multiples of 28"),
        (["video", "--size", "28"], "2 arguments"),
        (["video", "--opset", "13"], "invalid choice"),
        (["video", "--input", "floats"], "invalid choice"),
        (["audio"], "invalid choice"),
        ([], "mode"),
    ],
)
def test_bad_flags(capsys, tiny_dir, workdir, flags, words):
    before = contents(workdir)
    refused(run(capsys, tiny_dir, *flags, "--workdir", workdir), words)
    assert contents(workdir) == before


def test_without_the_step_before(capsys, tiny_dir, tmp_path):
    result = run(capsys, tiny_dir, "video", "--workdir", tmp_path)
    refused(result, "run run_video_by_sec.py CKPT --video PATH first")
    assert "--size" in result[2]
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["rotary_pos_emb.pth", "cu_seqlens.pth", "cu_window_seqlens.pth", "window_index.pth"])
def test_another_layout_than_transformers_is_found(capsys, tiny_dir, workdir, name):
    """Each tensor of step 1 is held against ours: swap two entries and the export stops."""
    tensor = torch.load(workdir / name, weights_only=True)
    torch.save(tensor.flip(0), workdir / name)
    before = contents(workdir)
    refused(run(capsys, tiny_dir, "video", "--workdir", workdir), name, code=1)
    assert contents(workdir) == before
    (workdir / name).unlink()
    refused(run(capsys, tiny_dir, "video", "--workdir", workdir), "run run_video_by_sec.py first")


class Malicious:
    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_objects_are_not_loaded(capsys, tiny_dir, workdir, tmp_path):
    evil = Malicious()
    evil.path = tmp_path / "executed"
    for data in (pickle.dumps(evil, protocol=2), b"", b"PK\x03\x04"):
        (workdir / "window_index.pth").write_bytes(data)
        refused(run(capsys, tiny_dir, "video", "--workdir", workdir), "window_index.pth: not a plain tensor")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", ["truncated", "{}", "[]", '{"size": 3}'])
def test_a_broken_capture(capsys, tiny_dir, workdir, damage):
    text = (workdir / "capture.json").read_text()
    (workdir / "capture.json").write_text(text[:40] if damage == "truncated" else damage)
    refused(run(capsys, tiny_dir, "video", "--workdir", workdir), "capture.json")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)])
def test_an_export_that_breaks_off_leaves_the_old_files(capsys, tiny_dir, captured, tmp_path, monkeypatch, error, code):
    workdir = shutil.copytree(captured, tmp_path / "work")
    before = contents(workdir)
    original = weights.vision_weights

    def breaking(*args):
        for number, item in enumerate(original(*args)):
            if number == 5:
                raise error
            yield item

    monkeypatch.setattr(weights, "vision_weights", breaking)
    ended, out, err = run(capsys, tiny_dir, "video", "--workdir", workdir)
    assert (ended, out) == (code, "")
    assert len(err.strip().splitlines()) == 1
    assert contents(workdir) == before


def test_a_checkpoint_that_lacks_a_tensor(capsys, tiny_dir, workdir, tmp_path):
    copy = shutil.copytree(tiny_dir, tmp_path / "tiny")
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["depth"] = 5
    (copy / "config.json").write_text(json.dumps(config))
    before = contents(workdir)
    result = run(capsys, copy, "video", "--workdir", workdir)
    refused(result, "visual.blocks.4.")
    assert "closest" in result[2]
    assert contents(workdir) == before
