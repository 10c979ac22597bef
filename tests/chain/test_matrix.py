"""Other forms end to end: a GPTQ checkpoint, a mixed configuration, dense windows taking over, pictures alone."""

import json
import shutil
import sys
from functools import partial

import pytest

from qwen_vl_axera.chain.__main__ import check_image_size
from qwen_vl_axera.chain.options import Run, read_variables
from qwen_vl_axera.errors import InputError
from tests.chain.test_export_video import STAND_IN, calls, export_video
from tests.chain.test_kill_and_resume import kill_when, start
from tests.conftest import ROOT
from tests.preflight.state import edit_json, rewrite_header
from tests.talking import capture_and_export

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
PACKED = "model.layers.0.mlp.up_proj"
# What a search proposes: linear layers at 8 bits, some by name back at 16.
MIXED = [
    {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"], "data_type": "U16"},
    {"op_types": ["Gemm"], "data_type": "U8"},
    {"layer_names": ["blocks.0.mlp.down_proj"], "data_type": "U16"},
]


@pytest.fixture
def gptq_dir(tiny_dir, tmp_path):
    """The tiny checkpoint with a matrix of its language model packed as GPTQ packs them."""
    checkpoint = shutil.copytree(tiny_dir, tmp_path / "tiny-GPTQ")

    def pack(entries):
        start, end = entries.pop(f"{PACKED}.weight")["data_offsets"]
        places = {".qweight": (start, start + 4), ".scales": (start + 4, start + 8), ".qzeros": (start + 8, end)}
        for suffix, (first, last) in places.items():
            entries[PACKED + suffix] = {"dtype": "I32", "shape": [(last - first) // 4], "data_offsets": [first, last]}

    (shard,) = checkpoint.glob("*.safetensors")
    rewrite_header(shard, pack)
    index = checkpoint / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    name = where.pop(f"{PACKED}.weight")
    edit_json(index, weight_map=where | {PACKED + suffix: name for suffix in (".qweight", ".scales", ".qzeros")})
    edit_json(checkpoint / "config.json", quantization_config=GPTQ)
    return checkpoint


# Both vision models exported, the second of four forms being built, the picture model delivered.
MOMENTS = ("work/*_vision_image.onnx", "work/probe/folded", "out/*_vision_image.axmodel")


def test_gptq_mixed_and_pictures_with_dense_windows_killed_three_times(gptq_dir, frames_dir, tmp_path):
    """Pictures are all that is given; the compiler takes dense windows only."""
    work = tmp_path / "work"
    work.mkdir()
    config = json.loads((ROOT / "config_video.json").read_text())
    config["quant"]["layer_configs"] = MIXED
    (work / "config_video_mixed.json").write_text(json.dumps(config))
    photo = shutil.copy(frames_dir / "002.png", tmp_path / "photo.png")
    env = {"PULSAR2": STAND_IN / "pulsar2", "STAND_IN_LOG": tmp_path / "log.jsonl", "STAND_IN_COMPUTE": sys.executable}
    env |= {"STAND_IN_REFUSE": "grouped folded unrolled", "QUANTIZE": "mixed", "IMAGE_SIZE": "84 84"}
    run = partial(start, gptq_dir, photo, tmp_path, "--resume", **{name: str(value) for name, value in env.items()})

    killed = [moment for moment in MOMENTS if kill_when(run(), tmp_path, moment)]
    assert len(killed) >= len(MOMENTS) - 1, f"only killed at {killed}"
    process = run()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.rstrip().splitlines()[-1].startswith("done: everything")

    assert json.loads((work / "probe.json").read_text())["form"] == "dense"
    for place in (work, work / "pictures"):
        checked = json.loads((place / "axmodel_fidelity.json").read_text())
        assert checked["passed"] and checked["graphs"][0]["steps"][0]["cosine"] > 0.99999
        assert all(one["obeyed"] == one["seen"] > 0 for one in checked["build"]["selectors"])
        assert checked["build"]["widths"]["Gemm"].keys() == {"8", "16"}
    assert [call[0] for call in calls(tmp_path)].count("llm_build") == 1
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]


def test_without_pictures_the_videos_frames_serve(tiny_dir, frames_dir, tmp_path):
    env = {"WORKDIR": tmp_path, "OUT": tmp_path / "out", "SIZE": "56 84", "IMAGE_SIZE": "84 84"}
    process = export_video(tiny_dir, ROOT / "assets" / "demo.mp4", "--dry-run", env=env)
    assert process.returncode == 0, process.stderr
    assert "note: no picture among the inputs: the videos' frames calibrate the picture model" in process.stderr
    clip = ROOT / "assets" / "demo.mp4"
    assert f"--video {clip} --num-frames 2 --size 84 84 --workdir {tmp_path}/pictures" in process.stdout
    assert f"get_calib.py --inputs {clip} --workdir {tmp_path}/pictures" in process.stdout
    assert process.stdout.count("pulsar2 build") == 2
    assert process.stdout.count('--window-mode="$form"') == 2


def test_the_videos_size_is_refused_as_soon_as_it_is_known(tiny_dir, frames_dir, tmp_path):
    capture_and_export(tiny_dir, tmp_path, frames_dir, (56, 84))

    def check(size):
        values = read_variables({"IMAGE_SIZE": size})
        check_image_size(Run(tiny_dir, tmp_path, tmp_path / "out", [frames_dir], ROOT / "config_video.json", values))

    check("84 84")
    with pytest.raises(InputError, match="IMAGE_SIZE=56 84: the video's model is of this size"):
        check("56 84")
