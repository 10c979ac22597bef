"""Preflight: a good state passes, and each thing that is broken in it is found by its own check."""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import save_file

from bench.make_checkpoint import SHAPES, hub_config
from preprocess import MEAN, STD, frames_to_patches, normalize, to_graph_input
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import DEMO_CLIP
from qwen_vl_axera.graph.export import export_vision
from qwen_vl_axera.preflight.archive import read_archive
from qwen_vl_axera.preflight.checkpoint import checkpoint_checks
from qwen_vl_axera.preflight.checks import Check, guarded, table
from qwen_vl_axera.preflight.machine import memory
from qwen_vl_axera.preflight.plan import Plan, Preflight
from tests.conftest import ROOT

SIZE = 112, 84  # 8x6 patches
SAMPLES = 16
SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
STAND_IN = ROOT / "tests" / "stand_in" / "pulsar2"


@dataclass
class State:
    """A checkpoint and a work directory, as the steps before the compiler leave them."""

    checkpoint: Path
    workdir: Path

    @property
    def graph(self) -> Path:
        return self.workdir / "tiny_vision.onnx"

    @property
    def archive(self) -> Path:
        return self.workdir / "calib" / "hidden_states.tar"

    def checks(self, **plan) -> list[Check]:
        return list(Preflight(Plan(self.checkpoint, self.workdir, tool=str(STAND_IN), **plan)).run())

    def bad(self, **plan) -> dict[str, str]:
        """Name -> detail of every check that is not ok; memory and disk are the machine's own."""
        machine = ("memory", "disk")
        return {c.name: c.detail for c in self.checks(**plan) if c.status != "ok" and c.name not in machine}


def samples(count=SAMPLES, format="numpy"):
    """Different pictures as samples: uint8 patches (S, 392, 3), or what the graph takes."""
    random = np.random.default_rng(3)
    for _ in range(count):
        frame = np.kron(random.integers(0, 256, (4, 3, 3), dtype=np.uint8), np.ones((28, 28, 1), np.uint8))
        (patches,) = frames_to_patches([frame], SIZE)
        yield to_graph_input(patches) if format == "numpy" else patches


def as_npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def encoded(sample):
    if sample.ndim == 4:
        return as_npy(sample)
    buffer = io.BytesIO()
    Image.fromarray(sample).save(buffer, "PNG")
    return buffer.getvalue()


def pack(archive, members):
    """Writes a tar of name -> bytes, or of TarInfo."""
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = data
                tar.addfile(info)


def numbered(items, suffix="npy"):
    return {f"{number:03d}.{suffix}": encoded(item) for number, item in enumerate(items)}


@pytest.fixture(scope="module")
def made(tiny_dir, tmp_path_factory):
    """The good state, made once."""
    base = tmp_path_factory.mktemp("preflight")
    state = State(base / "tiny", base / "work")
    shutil.copytree(tiny_dir, state.checkpoint)
    state.workdir.mkdir()
    export_vision(Checkpoint(state.checkpoint), state.workdir, "video", [SIZE])
    pack(state.archive, numbered(samples()))
    capture = {"size": SIZE, "grid_thw": (4, 8, 6), "kind": "video", "source": ["clip.mp4"], "indices": list(range(8))}
    capture |= {"sample_fps": 2.0, "second_per_grid_ts": 1.0, "checkpoint": "tiny", "versions": {}}
    (state.workdir / "capture.json").write_text(json.dumps(capture))
    return state


@pytest.fixture
def state(made, tmp_path):
    """The good state, to be broken."""
    shutil.copytree(made.checkpoint, tmp_path / "tiny")
    shutil.copytree(made.workdir, tmp_path / "work")
    return State(tmp_path / "tiny", tmp_path / "work")


def test_a_good_state_passes(made):
    assert made.bad() == {}
    names = [check.name for check in made.checks()]
    for name in ("checkpoint tensors", "checkpoint index", "graph operators", "graph input", "graph output"):
        assert name in names
    for name in ("graph metadata", "graph weights", "config schema", "config coherence", "archive samples"):
        assert name in names
    for name in ("archive values", "archive diversity", "prompt", "kv cache", "disk", "memory", "compiler"):
        assert name in names


# The checkpoint


def rewrite_header(path, change):
    """Applies `change` to a safetensors header; the data stays."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def header(change):
    return lambda state: rewrite_header(state.checkpoint / SHARD, change)


def store_as(dtype, suffixes=(".qweight",)):
    """Stores a linear layer of the language model as a quantised checkpoint does."""

    def change(entries):
        entry = entries.pop("model.layers.0.mlp.up_proj.weight")
        start, end = entry["data_offsets"]
        for suffix in suffixes:
            size = {"I32": 4, "F8_E4M3": 1, "U8": 1}[dtype]
            entries[f"model.layers.0.mlp.up_proj{suffix}"] = {
                "dtype": dtype, "shape": [(end - start) // size], "data_offsets": [start, end],
            }  # fmt: skip

    return header(change)


def transpose_embedding(entries):
    entries["model.embed_tokens.weight"]["shape"].reverse()


def as_float8(entries):
    entry = entries["visual.blocks.0.attn.qkv.weight"]
    start, end = entry["data_offsets"]
    entry |= {"dtype": "I8", "shape": entry["shape"], "data_offsets": [start, start + (end - start) // 2]}


def truncate(path, size=-10):
    path.write_bytes(path.read_bytes()[:size])


def move_in_index(state):
    """A second shard, to which the index ascribes a tensor of the first."""
    shard = "model-00002-of-00002.safetensors"
    save_file({"visual.extra": np.zeros(3, np.float32)}, state.checkpoint / shard)
    listed = json.loads((state.checkpoint / INDEX).read_text())["weight_map"]
    edit_json(state.checkpoint / INDEX, weight_map=listed | {"model.norm.weight": shard, "visual.extra": shard})


BROKEN_CHECKPOINTS = {
    "another shard": (
        move_in_index,
        {"checkpoint index": "1 not where it says: model.norm.weight", "checkpoint tensors": "1 unknown: visual.extra"},
    ),
    "tensor absent": (
        header(lambda entries: entries.pop("visual.blocks.1.attn.qkv.bias")),
        {"checkpoint tensors": "1 absent: visual.blocks.1.attn.qkv.bias", "checkpoint index": "1 not where it says"},
    ),
    "another shape": (
        header(transpose_embedding),
        {"checkpoint tensors": "model.embed_tokens.weight is [48, 512], config.json asks for [512, 48]"},
    ),
    "integers": (header(as_float8), {"checkpoint dtypes": "stored as I8"}),
    "GPTQ": (
        store_as("I32", (".qweight", ".qzeros", ".scales", ".g_idx")),
        {"checkpoint storage": "GPTQ: 4 tensors are packed", "checkpoint index": "1 not where it says"},
    ),
    "AWQ": (
        store_as("I32", (".qweight", ".qzeros", ".scales")),
        {"checkpoint storage": "AWQ: 3 tensors are packed", "checkpoint index": "1 not where it says"},
    ),
    "FP8": (
        store_as("F8_E4M3", (".weight",)),
        {"checkpoint storage": "FP8: 1 tensors are packed"},
    ),
    "quantised by config.json": (
        lambda state: edit_json(state.checkpoint / "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        {"checkpoint storage": "bitsandbytes"},
    ),
    "shard of another download": (
        lambda state: shutil.copy(state.checkpoint / SHARD, state.checkpoint / "model-00002-of-00002.safetensors"),
        {"checkpoint index": "not in it: model-00002-of-00002.safetensors"},
    ),
    "other mean": (
        lambda state: (state.checkpoint / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}'),
        {"normalisation": "image_mean is [0.5, 0.5, 0.5]"},
    ),
    "truncated": (lambda state: truncate(state.checkpoint / SHARD), {"checkpoint": "truncated"}),
    "shard absent": (lambda state: (state.checkpoint / SHARD).unlink(), {"checkpoint": "1 absent"}),
    "no config.json": (lambda state: (state.checkpoint / "config.json").unlink(),
                       {"checkpoint": "config.json is missing"}),
    "text only": (
        lambda state: edit_json(state.checkpoint / "config.json", vision_config=None),
        {"checkpoint": "has no vision_config"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_CHECKPOINTS)
def test_broken_checkpoints(state, case):
    breaking, expected = BROKEN_CHECKPOINTS[case]
    breaking(state)
    found = {name: text for name, text in state.bad().items() if name.startswith(("checkpoint", "normalisation"))}
    assert found.keys() == expected.keys()
    for name, words in expected.items():
        assert words in found[name]


@pytest.mark.parametrize("shape", SHAPES)
def test_released_shapes_against_transformers_own_tensors(tmp_path, shape):
    """Headers only: the files are as large as the true ones, and sparse."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = hub_config(shape)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(tmp_path))
    end, entries = 0, {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        start, end = end, end + 2 * tensor.numel()
        entries[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (check,) = checkpoint_checks(Checkpoint(tmp_path))
    assert check.status == "ok", check.detail
    assert f"{len(entries)} tensors ({len(entries)} BF16), {end / 1e6:.1f} MB" in check.detail


# The graph


def edit_graph(change):
    def breaking(state):
        model = onnx.load(state.graph, load_external_data=False)
        change(model)
        state.graph.write_bytes(model.SerializeToString())

    return breaking


def set_metadata(key, value):
    def change(model):
        for entry in model.metadata_props:
            if entry.key == f"qwen_vl_axera.{key}":
                entry.value = value

    return edit_graph(change)


def rename(model):
    for node in model.graph.node:
        node.input[:] = ["x" if name == "hidden_states" else name for name in node.input]
    model.graph.input[0].name = "x"


def clear_metadata(model):
    del model.metadata_props[:]


def other_weights(state):
    data = state.workdir / "tiny_vision.onnx.data"
    values = np.fromfile(data, np.float32)
    (values * np.float32(1.001)).tofile(data)


BROKEN_GRAPHS = {
    "missing": (lambda state: state.graph.unlink(), {"graph": "is missing"}),
    "empty": (lambda state: state.graph.write_bytes(b""), {"graph": "not an ONNX model"}),
    "truncated": (lambda state: truncate(state.graph), {"graph": "not an ONNX model"}),
    "uint8 variant": (
        lambda state: shutil.copy(state.workdir / "tiny_vision_uint8.onnx", state.graph),
        {"graph input": "takes uint8"},
    ),
    "an operator that AX650 lacks": (
        edit_graph(lambda model: setattr(model.graph.node[3], "op_type", "Einsum")),
        {"graph operators": "not in the operator list of AX650"},
    ),
    "input renamed": (edit_graph(rename), {"graph input": "is x float [1, 3, 48, 392], expected hidden_states"}),
    "output renamed": (
        edit_graph(lambda model: setattr(model.graph.output[0], "name", "y")),
        {"graph output": "expected hidden_states_out float [12, 48]"},
    ),
    "another size": (set_metadata("size", "[112, 112]"), {"graph input": "expected hidden_states float [1, 3, 64,"}),
    "another checkpoint": (set_metadata("checkpoint", '"other"'), {"graph metadata": "made from other, not tiny"}),
    "another mean": (set_metadata("mean", "[0.5, 0.5, 0.5]"), {"graph metadata": "mean is [0.5, 0.5, 0.5]"}),
    "foreign graph": (edit_graph(clear_metadata), {"graph": "no vision graph of export.py"}),
    "metadata that is no JSON": (set_metadata("size", "{"), {"graph": "not readable as JSON"}),
    "weights absent": (
        lambda state: (state.workdir / "tiny_vision.onnx.data").unlink(),
        {"graph weights": "is not beside"},
    ),
    "weights truncated": (
        lambda state: truncate(state.workdir / "tiny_vision.onnx.data"),
        {"graph weights": "it is truncated"},
    ),
    "weights of another model": (other_weights, {"graph weights": "are not this checkpoint's"}),
    "weights elsewhere": (
        edit_graph(lambda model: [
            setattr(entry, "value", "../tiny_vision.onnx.data")
            for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
        ]),
        {"graph weights": "is not beside"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_GRAPHS)
def test_broken_graphs(state, case):
    breaking, expected = BROKEN_GRAPHS[case]
    breaking(state)
    found = {name: text for name, text in state.bad().items() if name.startswith("graph")}
    for name, words in expected.items():
        assert words in found[name]
    # Another size changes both ends; an output that no node makes has no shape, either.
    assert found.keys() - expected.keys() <= {"graph output", "graph operators"}


# The archive


def every(change):
    return lambda state: pack(state.archive, numbered(change(sample) for sample in samples()))


def with_member(name, data):
    return lambda state: pack(state.archive, numbered(samples()) | {name: data})


GOOD = encoded(next(samples()))
NAN = next(samples())
NAN[0, 1, 7, 9] = np.nan

BROKEN_ARCHIVES = {
    "missing": (lambda state: state.archive.unlink(), "archive", "is missing"),
    "empty file": (lambda state: state.archive.write_bytes(b""), "archive", "not a readable tar archive"),
    "no members": (lambda state: pack(state.archive, {}), "archive", "holds no sample"),
    "truncated": (lambda state: truncate(state.archive, 5000), "archive", "not a readable tar archive"),
    "noise": (lambda state: state.archive.write_bytes(os.urandom(4096)), "archive", "not a readable tar archive"),
    "directory": (with_member("calib/x.npy", GOOD), "archive", "does not lie at the root"),
    "climbing": (with_member("../x.npy", GOOD), "archive", "does not lie at the root"),
    "absolute": (with_member("/x.npy", GOOD), "archive", "does not lie at the root"),
    "link": (with_member("x.npy", (tarfile.SYMTYPE, "/etc/passwd")), "archive", "is no file"),
    "hard link": (with_member("x.npy", (tarfile.LNKTYPE, "000.npy")), "archive", "is no file"),
    "device": (with_member("x.npy", (tarfile.CHRTYPE, "")), "archive", "is no file"),
    "subdirectory": (with_member("x", (tarfile.DIRTYPE, "")), "archive", "is no file"),
    "foreign file": (with_member("manifest.json", b"{}"), "archive", "is no sample"),
    "pickle": (with_member("x.npy", pickle.dumps([1, 2])), "archive", "not a plain array"),
    "object array": (
        with_member("x.npy", as_npy(np.array([{}], object))),
        "archive", "not a plain array",
    ),
    "half an array": (with_member("x.npy", GOOD[:1000]), "archive", "not a plain array"),
    "NaN": (with_member("x.npy", encoded(NAN)), "archive", "NaN or infinite"),
    "uint8": (every(lambda sample: sample.astype(np.uint8)), "archive", "is uint8, the graph's input is float32"),
    "float64": (every(lambda sample: sample.astype(np.float64)), "archive", "is float64"),
    "no batch axis": (with_member("x.npy", as_npy(next(samples())[0])), "archive", "has shape [3, 48, 392]"),
    "NHWC": (every(lambda sample: sample.transpose(0, 2, 3, 1)), "archive", "has shape [1, 48, 392, 3]"),
    "two shapes": (with_member("x.npy", encoded(next(samples())[:, :, :44])), "archive", "samples differ"),
    "two formats": (with_member("x.png", encoded(next(samples(format="image")))), "archive", "samples differ"),
    "another size": (every(lambda sample: sample[:, :, :44]), "archive samples", "the graph takes [1, 3, 48, 392]"),
    "values of 0..1": (every(lambda sample: sample / np.float32(255)), "archive values", "0..1, not 0..255"),
    "normalised values": (
        every(lambda sample: normalize(sample[0].transpose(1, 2, 0).astype(np.uint8))), "archive values", "normalized",
    ),
    "values beyond 255": (every(lambda sample: sample * 2), "archive values", "neither pixels nor"),
    "nothing but one value": (every(lambda sample: sample * 0 + 7), "archive values", "every value is 7"),
    "one picture": (
        lambda state: pack(state.archive, numbered([next(samples())] * SAMPLES)),
        "archive diversity", f"{SAMPLES - 1} of {SAMPLES} samples nearly repeat",
    ),
    "few samples": (
        lambda state: pack(state.archive, numbered(samples(4))), "config: few-samples", "calibrated on 4 samples",
    ),
    "pictures": (
        lambda state: pack(state.archive, numbered(samples(format="image"), "png")),
        "config: wrong-calibration-format", "holds pictures",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_ARCHIVES)
def test_broken_archives(state, case):
    breaking, name, words = BROKEN_ARCHIVES[case]
    breaking(state)
    found = state.bad()
    assert words in found[name]
    assert all(other.startswith(("archive", "config")) for other in found)


def test_pictures_for_a_normalized_graph(state):
    capture = (state.workdir / "capture.json").rename(state.workdir / "aside")  # no layout tensors belong to it
    export_vision(Checkpoint(state.checkpoint), state.workdir, "video", [SIZE], input="normalized")
    capture.rename(state.workdir / "capture.json")
    pack(state.archive, numbered(samples(format="image"), "png"))
    assert state.bad() == {}  # config_video_normalized.json is taken by itself
    found = state.bad(config=ROOT / "config_video.json")
    assert "config: wrong-calibration-format" in found and "config: run-time-raw-pixels" in found
    grey = io.BytesIO()
    Image.new("L", (392, 48)).save(grey, "PNG")
    pack(state.archive, numbered(samples(format="image"), "png") | {"x.png": grey.getvalue()})
    assert "is L, expected RGB" in state.bad()["archive"]
    pack(state.archive, numbered(samples(format="image"), "png") | {"x.png": b"no picture"})
    assert "does not decode as a picture" in state.bad()["archive"]


def test_values_are_told_apart(tmp_path):
    low, high = (-np.array(MEAN) / STD).min(), ((1 - np.array(MEAN)) / STD).max()
    for bounds, kind in (((0, 255), "pixels"), ((0, 1), "unit"), ((low, high), "normalized"), ((-1, 255), "other")):
        sample = np.zeros((1, 3, 4, 392), np.float32)
        sample[0, 0, 0, :2] = bounds
        pack(tmp_path / "x.tar", numbered([sample]))
        assert read_archive(tmp_path / "x.tar").values == kind


# The configuration, the prompt, the machine, the tool


def config_with(state, **changes):
    path = state.workdir / "config.json"
    config = json.loads((ROOT / "config_video.json").read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = config
        for parent in parents:
            place = place[int(parent)] if parent.isdigit() else place[parent]
        place[last] = value
    path.write_text(json.dumps(config))
    return path


def test_a_misspelt_field_is_found_before_the_build(state):
    config = config_with(state, quant__input_configs__0__calibration_fromat="Numpy")
    assert "did you mean calibration_format?" in state.bad(config=config)["config"]
    assert "no such file" in state.bad(config=state.workdir / "none.json")["config"]


def test_layer_names_are_looked_up_in_the_graph(state):
    layer = {"layer_name": "blocks.1.mlp.down_proj", "data_type": "U16"}
    assert state.bad(config=config_with(state, quant__layer_configs=[layer])) == {}
    layer["layer_name"] = "blocks.99.mlp.down_proj"
    found = state.bad(config=config_with(state, quant__layer_configs=[layer]))
    assert "blocks.99.mlp.down_proj: not in the graph" in found["config: unknown-layer"]


def test_the_archive_is_the_one_that_the_configuration_names(state):
    config = config_with(state, quant__input_configs__0__calibration_dataset="calib/other.tar")
    assert "other.tar is missing" in state.bad(config=config)["archive"]


@pytest.mark.parametrize(
    ("plan", "name", "words", "remedy"),
    [
        ({"prefill_len": 64}, "prompt", "do not fit the prefill of 64", "PREFILL_LEN=128"),
        (
            {"prefill_len": 32, "last_kv_cache_len": [32, 64]},
            "prompt",
            "do not fit the prefill of 64",
            "PREFILL_LEN=128",
        ),
        ({"kv_cache_len": 127, "prefill_len": 96}, "kv cache", "are left for the answer", "KV_CACHE_LEN=255"),
        ({"kv_cache_len": 50, "prefill_len": 96}, "kv cache", "do not fit 50", "KV_CACHE_LEN=255"),
        ({"kv_cache_len": 400}, "kv cache", "512 tokens do not fit 400", "KV_CACHE_LEN=767"),
        ({"prompt": "描述" * 500}, "prompt", "do not fit the prefill of 512", "PREFILL_LEN="),
    ],
)
def test_prompts_that_do_not_fit(made, plan, name, words, remedy):
    (check,) = [check for check in made.checks(**plan) if check.name == name]
    assert words in check.detail and remedy in check.remedy
    assert check.status == ("warning" if "left" in words else "failed")


def test_the_prompt_is_counted_as_the_tokenizer_does(made):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made.checkpoint)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "描述这个视频."}]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = len(tokenizer(text)["input_ids"]) - 1 + 4 * 12
    assert made.bad(prefill_len=expected, kv_cache_len=1023) == {}
    assert f"{expected} tokens, 48 of them visual" in made.bad(prefill_len=expected - 1)["prompt"]


def test_without_capture_or_tokenizer(state):
    (state.workdir / "capture.json").unlink()
    assert "not counted" in state.bad()["prompt"]
    shutil.copy(ROOT / "pyproject.toml", state.workdir / "capture.json")
    assert "not readable as JSON" in state.bad()["prompt"]


def test_no_tokenizer(state):
    for path in [*state.checkpoint.glob("*token*"), *state.checkpoint.glob("vocab*")]:
        path.unlink()
    assert "no tokenizer.json" in state.bad()["prompt"]


@pytest.mark.parametrize(
    ("free", "status"), [(10**12, "ok"), (10**6, "warning"), (0, "failed")]
)  # fmt: skip
def test_disk(made, monkeypatch, free, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    (check,) = [check for check in made.checks() if check.name == "disk"]
    assert check.status == status and "an inference" in check.detail


@pytest.mark.parametrize(
    ("sizes", "status"),
    [((64e9, 60e9), "ok"), ((16e9, 12e9), "warning"), ((64e9, 1e5), "failed"), ((None, 0), "warning")],
)
def test_memory(made, monkeypatch, sizes, status):
    monkeypatch.setattr("qwen_vl_axera.preflight.machine.memory", lambda: sizes)
    (check,) = [check for check in made.checks() if check.name == "memory"]
    assert check.status == status


def test_memory_of_this_machine():
    total, available = memory()
    assert total is None or 0 <= available <= total


@pytest.mark.parametrize(
    ("tool", "status", "words"),
    [
        (str(STAND_IN), "ok", "version: 0.0-stand-in"),
        ("/none/pulsar2", "failed", "no such command"),
        ("docker:", "failed", "expected docker:IMAGE"),
        ("false", "failed", "does not tell its version"),
    ],
)
def test_the_tool(made, tool, status, words):
    plan = Plan(made.checkpoint, made.workdir, tool=tool)
    (check,) = [check for check in Preflight(plan).run() if check.name == "compiler"]
    assert check.status == status and words in check.detail


def test_without_the_tool_the_rest_is_still_checked(made, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = list(Preflight(Plan(made.checkpoint, made.workdir)).run())
    assert checks[-1].name == "compiler" and checks[-1].status == "warning"
    assert not [check for check in checks if check.status == "failed"]


def test_an_unforeseen_malformation_ends_in_the_table():
    def check():
        yield Check("first", "ok", "")
        raise KeyError("size")

    first, second = guarded("graph", "export again", check)
    assert (first.status, second.status) == ("ok", "failed")
    assert "KeyError" in second.detail and second.remedy == "export again"
    assert "FAILED  graph" in table([second]) and "-> export again" in table([second])


# The script


def test_script(made, run_script, tmp_path):
    argv = ["preflight.py", made.checkpoint, "--workdir", made.workdir]
    done = run_script(*argv, env={"PULSAR2": str(STAND_IN)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok      graph weights" in done.stdout and "FAILED" not in done.stdout
    done = run_script(*argv, "--json", "--prefill-len", 64)
    assert done.returncode == 1
    printed = json.loads(done.stdout)
    assert printed["passed"] is False
    assert {frozenset(check) for check in printed["checks"]} == {frozenset({"name", "status", "detail", "remedy"})}
    assert [check["name"] for check in printed["checks"] if check["status"] == "failed"] == ["prompt"]
    assert json.loads((made.workdir / "preflight.json").read_text()) == printed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["none"], "none: expected a directory"),
        ([ROOT / "config_video.json"], "expected a directory"),
        ([".", "--workdir", "none"], "none: expected a directory"),
        ([".", "--prefill-len", "0"], "--prefill-len"),
        ([], "CKPT"),
    ],
)
def test_bad_arguments(run_script, tmp_path, argv, words):
    done = run_script(ROOT / "preflight.py", *argv, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_fails_every_check_that_matters(run_script, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run_script("preflight.py", tmp_path / "empty", "--workdir", tmp_path / "empty", "--json")
    failed = {check["name"] for check in json.loads(done.stdout)["checks"] if check["status"] == "failed"}
    assert done.returncode == 1 and {"checkpoint", "graph", "archive"} <= failed and "Traceback" not in done.stderr


def test_calibration_from_the_demo_clip_is_a_warning(state):
    manifest = state.workdir / "calib" / "manifest.json"
    sample = {"file": "sample_00000.npy", "source": [str(DEMO_CLIP)], "frames": [0, 1]}
    manifest.write_text(json.dumps({"size": list(SIZE), "samples": [sample]}))
    assert "the demo clip" in state.bad()["archive origin"]
    manifest.write_text(json.dumps({"size": list(SIZE), "samples": [sample | {"source": ["/elsewhere/clip.mp4"]}]}))
    assert "archive origin" not in state.bad()
