"""The stand-in itself: a test double that takes everything shows nothing."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from qwen_vl_axera.graph.export import export_vision
from tests.compiler.running import CONFIG, STAND_IN, cli
from tests.conftest import ROOT

UINT8, UINT16 = onnx.TensorProto.UINT8, onnx.TensorProto.UINT16
POLICY = """PER_TENSOR PER_CHANNEL LINEAR EXPONENTIAL SYMMETRICAL ASYMMETRICAL POWER_OF_2 PER_CHANNEL_RE_GROUP
PER_BLOCK""".split()


@dataclasses.dataclass
class Built:
    """What a build left: the record (None: none that can be read), the quantised graph, names and shapes, the log."""

    source: Path
    out: Path
    log: str

    @property
    def record(self):
        try:
            return json.loads((self.out / "quant" / "quant_axmodel.json").read_text())
        except (OSError, ValueError):
            return None

    @property
    def graph(self):
        return onnx.load(self.out / "quant" / "quant_axmodel.onnx", load_external_data=False).graph

    @property
    def frontend(self):
        graph = onnx.load(self.out / "frontend" / "optimized.onnx", load_external_data=False).graph
        nodes = [(node.name, node.op_type) for node in graph.node]
        return nodes, {tensor.name: list(tensor.dims) for tensor in graph.initializer}


@pytest.fixture(scope="session")
def exported(tiny, tmp_path_factory):
    """A small tower's graph."""
    graphs = export_vision(tiny, tmp_path_factory.mktemp("graph"), "video", [(196, 196)])
    return next(graph.path for graph in graphs if not graph.spec.uint8)


@pytest.fixture
def built(exported, tmp_path):
    """Builds with these layer_configs (None: the vendor's) and switches."""
    low, high = np.full((1, 3, 196, 392), -3, np.float32), np.full((1, 3, 196, 392), 252, np.float32)
    with tarfile.open(tmp_path / "samples.tar", "w") as tar:
        for name, values in {"0.npy": low, "1.npy": high}.items():
            np.save(tmp_path / name, values)
            tar.add(tmp_path / name, name)
    count = 0

    def run(layer_configs=None, terminate=False, **switches):
        nonlocal count
        count += 1
        config = json.loads(CONFIG.read_text())
        config["quant"]["input_configs"][0]["calibration_dataset"] = str(tmp_path / "samples.tar")
        if layer_configs is not None:
            config["quant"]["layer_configs"] = layer_configs
        (tmp_path / "config.json").write_text(json.dumps(config))
        out = tmp_path / f"out{count}"
        command = [STAND_IN, "build", "--input", exported, "--config", tmp_path / "config.json", "--output_dir", out]
        command = [*command, "--compiler.npu_perf", "true"]
        environment = os.environ | switches
        if not terminate:
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            return Built(exported, out, done.stdout)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (out / "compiled.axmodel").exists() or not (out / "compiled.axmodel").stat().st_size:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        return Built(exported, out, "")

    return run


def entries(record):
    return (entry for tensors in record["tensor_configs"].values() for entry in tensors.values())


def gemms(one):
    return [name for name, op in one.frontend[0] if op == "Gemm"]


def read_width(one, name):
    return next(iter(e["bit_width"] for e in one.record["tensor_configs"][name].values() if e["state"] in ACTIVE))


ACTIVE = ("ACTIVATED", "OVERLAPPED")


@pytest.mark.parametrize(
    "argv",
    [
        ["build", "--inptu", "x"],
        ["build", "--inp", "x"],
        ["build", "--kv_cache_len", "1"],
        ["build", "--target_hardware", "AX8850"],
        ["llm_build", "--prefil_len", "1"],
        ["llm_build", "--hidden_state_type", "bfloat16"],
        ["llm_build", "--max_context", "1"],
        ["llm_build2", "--kv_cache_len", "1"],
        ["run", "--inputs", "x"],
        ["optimize"],
    ],
)
def test_stand_in_refuses_undocumented_options(argv):
    assert subprocess.run([STAND_IN, *argv], capture_output=True).returncode == 2


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"0.npy": np.zeros((1, 3, 16, 392), np.uint8)},
        {"0.npy": np.zeros((1, 3, 16, 392), np.float64)},
        {"0.npy": np.zeros((3, 16, 392), np.float32)},
        {"0.npy": np.zeros((1, 16, 392, 3), np.float32)},
        {"0.npy": np.zeros((1, 3, 18, 392), np.float32)},
        {"0.npy": np.zeros((1, 3, 16, 392), np.float32), "1.npy": np.zeros((1, 3, 20, 392), np.float32)},
        {"calib/0.npy": np.zeros((1, 3, 16, 392), np.float32)},
        {"../0.npy": np.zeros((1, 3, 16, 392), np.float32)},
        {"0.png": np.zeros((16, 392, 3), np.uint8)},
        None,
    ],
)
def test_stand_in_refuses_wrong_archives(make_workdir, members):
    workdir = make_workdir(archive=False)
    if members is not None:
        with tarfile.open(workdir / "calib" / "hidden_states.tar", "w") as tar:
            for name, values in members.items():
                if name.endswith(".npy"):
                    np.save(workdir / "sample.npy", values)
                else:
                    Image.fromarray(values).save(workdir / "sample.npy", "png")
                tar.add(workdir / "sample.npy", name)
    done = cli("build", "tiny_vision.onnx", "--config", CONFIG)
    assert done.returncode == 1 and "exit code 2" in done.stderr


def test_stand_in_takes_pictures_for_the_normalized_graph(make_workdir):
    workdir = make_workdir(archive=False)
    Image.fromarray(np.zeros((16, 392, 3), np.uint8)).save(workdir / "0.png")
    with tarfile.open(workdir / "calib" / "hidden_states.tar", "w") as tar:
        tar.add(workdir / "0.png", "0.png")
    done = cli("build", "tiny_vision.onnx", "--config", ROOT / "config_video_normalized.json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ['{"quant": {"input_configs": [], "quant": 1}}', '{"a": 1}', "{,}", '{"quant": NaN}'])
def test_stand_in_refuses_wrong_configurations(make_workdir, text):
    workdir = make_workdir()
    (workdir / "wrong.json").write_text(text)
    assert cli("build", "tiny_vision.onnx", "--config", "wrong.json").returncode == 1


def test_the_record_is_in_the_real_form(built):
    record = built().record
    assert set(record) == {"quant_config", "tensor_configs", "dispatchings", "values"}
    assert set(record["quant_config"]) == {"input_configs", "mix_precision_configs"}
    assert set(record["dispatchings"]) == set(record["tensor_configs"])
    for entry in entries(record):
        assert set(entry) == set("bit_width policy state quant_min quant_max hash dominator".split())
        assert {*entry["policy"]} == {*POLICY} and all(type(value) is bool for value in entry["policy"].values())
        assert (entry["quant_min"] < 0) == entry["policy"]["SYMMETRICAL"] != entry["policy"]["ASYMMETRICAL"]
        assert entry["quant_max"] - entry["quant_min"] == 2 ** entry["bit_width"] - 1
    assert {entry["state"] for entry in entries(record)} >= {"ACTIVATED", "OVERLAPPED", "BAKED", "PASSIVE_BAKED", "SOI"}


def test_values_stand_under_the_hash_or_else_under_the_dominator(built):
    record = built().record
    assert all(key.isdecimal() for key in record["values"])
    alone = 0
    for entry in entries(record):
        own, other = (record["values"].get(str(entry[key])) for key in ("hash", "dominator"))
        if entry["state"] in ("ACTIVATED", "BAKED"):
            assert own and entry["hash"] == entry["dominator"]
        elif entry["state"] == "OVERLAPPED":
            assert not own and other
            alone += 1
    assert alone > 100


def test_weights_are_baked_by_channel_and_constants_by_tensor(built):
    one = built()
    gemm = one.record["tensor_configs"]["blocks.0.attn.proj"]
    weight = gemm["blocks.0.attn.proj.weight"]
    assert (weight["state"], weight["bit_width"], weight["quant_min"]) == ("BAKED", 8, -128)
    assert weight["policy"]["PER_CHANNEL"] and gemm["blocks.0.attn.proj.bias"]["state"] == "PASSIVE_BAKED"
    scales = one.record["values"][str(weight["hash"])]["scale"]
    assert len(scales) == one.frontend[1]["blocks.0.attn.proj.weight"][0] and min(scales) > 0
    constant = one.record["tensor_configs"]["rotary.mul"]["rotary.cos"]
    assert (constant["state"], constant["bit_width"], constant["quant_min"]) == ("BAKED", 8, 0)
    assert constant["policy"]["PER_TENSOR"]


def test_fused_operators_have_new_names_and_what_they_took_away_is_no_edge(built):
    one = built()
    kinds = {name.split(":")[1] for name in one.record["tensor_configs"] if ":" in name}
    assert kinds == {"onnx.RMSNormalization", "onnx.Silu", "onnx.Gelu", "onnx.pre_Reshape"}
    assert not any("norm1.pow" in node.name for node in one.graph.node)
    norm = one.record["tensor_configs"]["op_5:onnx.RMSNormalization"]
    assert norm["blocks.0.norm1.pow"]["bit_width"] == 8 and norm["blocks.0.norm1.mul"]["bit_width"] == 16
    made = {name for node in one.graph.node for name in node.output} | {"hidden_states"}
    tensors = {tensor for entries in one.record["tensor_configs"].values() for tensor in entries}
    assert "blocks.0.norm1.pow" in tensors - made  # an entry that means nothing
    assert "blocks.0.attn.windows.0.reshape" in tensors - made  # a movement operator that went into the next
    assert all(
        name in made | {tensor.name for tensor in one.graph.initializer} for n in one.graph.node for name in n.input
    )


def test_without_fusion_the_chains_stay(built):
    names = built(STAND_IN_LIES="unfused=RMSNormalization+Silu").record["tensor_configs"]
    assert {"blocks.0.norm1.pow", "blocks.0.mlp.sigmoid"} <= set(names)
    assert {name.split(":")[1] for name in names if ":" in name} == {"onnx.Gelu", "onnx.pre_Reshape"}


def test_the_names_of_the_frontend_are_those_of_the_record(built):
    one = built()
    assert {name for name, _ in one.frontend[0]} == set(one.record["tensor_configs"])


MIXED = [
    {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"], "data_type": "U16"},
    {"op_types": ["Gemm", "onnx.Silu"], "data_type": "U8"},
    {"layer_names": ["blocks.0.mlp.down_proj", "no such layer"], "data_type": "U16"},
]


def test_a_layer_goes_before_a_type_and_a_type_before_the_whole(built):
    one = built(MIXED)
    configs = one.record["tensor_configs"]
    assert configs["blocks.0.add"]["patch_embed.proj"]["bit_width"] == 16
    assert configs["blocks.0.attn.proj"]["blocks.0.attn.concat"]["bit_width"] == 8
    assert configs["blocks.0.mlp.down_proj"]["blocks.0.mlp.mul_1"]["bit_width"] == 16
    (silu,) = (entries for name, entries in configs.items() if "onnx.Silu" in name and "blocks.0.mlp.mul" in entries)
    assert silu["blocks.0.mlp.gate_proj"]["bit_width"] == 16  # names of fused types reach nothing
    selectors = one.record["quant_config"]["mix_precision_configs"]
    assert selectors == {"Gemm": {"dtype": "U8"}, "blocks.0.mlp.down_proj": {"dtype": "U16"}}
    assert "no such layer" in one.log  # the table of what was read says nothing about what was found


def test_a_tensor_has_its_readers_type_and_a_border_stands_in_front_of_the_others(built):
    one = built(MIXED)
    configs = one.record["tensor_configs"]
    # the norm's output feeds Gemms alone: it is made at their 8 bits; the Gemm's feeds an Add at 16
    assert configs["op_5:onnx.RMSNormalization"]["blocks.0.norm1.mul"]["bit_width"] == 8
    assert configs["patch_embed.proj"]["patch_embed.proj"]["bit_width"] == 16
    signed = configs["blocks.0.attn.windows.0.mat_mul_1"]["blocks.0.attn.windows.0.transpose_2"]
    assert (signed["bit_width"], signed["quant_min"]) == (16, -32768)
    one = built([MIXED[0], {"layer_names": ["blocks.0.attn.qkv.q"], "data_type": "U8"}])
    border = {node.output[0]: node.input[0] for node in one.graph.node if node.op_type == "AxRequantizeLinear"}
    (read,) = {node.name: node for node in one.graph.node}["blocks.0.attn.qkv.q"].input[:1]
    kinds = {info.name: info.type.tensor_type.elem_type for info in one.graph.value_info}
    assert border[read] == "blocks.0.norm1.mul" and (kinds[read], kinds[border[read]]) == (UINT8, UINT16)
    assert one.record["tensor_configs"]["blocks.0.attn.qkv.q"]["blocks.0.norm1.mul"]["bit_width"] == 8
    assert one.record["tensor_configs"]["blocks.0.attn.qkv.k"]["blocks.0.norm1.mul"]["bit_width"] == 16


def test_a_layer_that_was_fused_away_ends_the_build(built):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        built([{"layer_names": ["blocks.0.norm1.pow"], "data_type": "U16"}])
    assert failed.value.returncode == 2 and "doesn't exist in model" in failed.value.stderr


def test_the_inputs_scale_is_its_samples(built):
    one = built()
    entry = one.record["tensor_configs"]["transpose"]["hidden_states"]
    found = one.record["values"].get(str(entry["hash"])) or one.record["values"][str(entry["dominator"])]
    low, high = np.float32(-3), np.float32(252)
    assert found["scale"] == [np.float32((np.float64(high) - np.float64(low)) / 65535)]
    assert found["zero_point"] == [np.rint(-np.float64(low) / np.float64(found["scale"][0]))]


def test_ranges_are_computed_where_they_are_asked_for(built):
    lied = {"STAND_IN_LIES": "calibrate", "STAND_IN_COMPUTE": sys.executable}
    one, weights = built(**lied), {}
    for tensor in onnx.load(one.source).graph.initializer:
        weights[tensor.name] = onnx.numpy_helper.to_array(tensor)
    entry = one.record["tensor_configs"]["merger.mlp.0"]["merger.mlp.0.weight"]
    most = np.abs(weights["merger.mlp.0.weight"]).max(axis=1)
    np.testing.assert_allclose(one.record["values"][str(entry["hash"])]["scale"], most / 127.5, rtol=1e-6)


def test_the_log_and_the_trace_agree(built):
    one = built()
    assert "fuse 1 subgraph(s)" in one.log
    assert f"SOI: [{sum(entry['state'] == 'SOI' for entry in entries(one.record))}]" in one.log
    events = json.loads((one.out / "compiler/debug/subgraph_npu_0/b1/trace.json").read_text())["traceEvents"]
    (cycles,) = re.findall(r"max_cycle = ([\d,]+)", one.log)
    span = max(event["ts"] + event["dur"] for event in events) * 1000
    assert abs(span - int(cycles.replace(",", ""))) < 10 < sum(event["dur"] for event in events) * 1000 - span
    (macs,) = re.findall(r"QuantAxModel macs: ([\d,]+)", one.log)
    assert int(macs.replace(",", "")) > 1_000_000
    table = (one.out / "quant/debug/precision_analysis_table.txt").read_text(encoding="utf-8")
    assert table.startswith("Quant Precision Table【EndToEnd】\n") and "│ op_5:onnx.RMSNormalization " in table
    rows = [line.split("│")[1:-1] for line in table.splitlines() if line.startswith("│")]
    assert {len(row) for row in rows} == {8}
    long = next(number for number, row in enumerate(rows) if row[0].strip() == "blocks.0.attn.windows.0.mat_")
    assert [cell.strip() for cell in rows[long + 1]] == ["mul", "", "mul", "", "", "", "", ""]  # long cells go on
    assert b"neu mode" in (one.out / "compiled.axmodel").read_bytes()


def test_lies_that_the_build_tells(built):
    assert "configs" in built(STAND_IN_LIES="schema=configs").record
    assert "tensor_configs" not in built(STAND_IN_LIES="schema=new").record
    assert all(name.startswith("op_") for name in built(STAND_IN_LIES="renamed").record["tensor_configs"])
    one = built([{"op_types": ["Gemm"], "data_type": "U16"}], STAND_IN_LIES="reach=3")
    reached = [name for name in gemms(one) if read_width(one, name) == 16]
    assert reached == ["patch_embed.proj", "blocks.0.attn.qkv.q", "blocks.0.attn.qkv.k"]
    assert not gemms(built(STAND_IN_LIES="gemm_renamed"))
    assert "observer" in next(entries(built(STAND_IN_LIES="extra").record))
    assert "DEFERRED" in {entry["state"] for entry in entries(built(STAND_IN_LIES="unknown").record)}
    values = built(STAND_IN_LIES="bad_scales").record["values"].values()
    scales = [value["scale"][0] for value in values if len(value["scale"]) == 1]
    assert 0 in scales and min(scales) < 0 and np.isnan(scales).any()
    constant = built(STAND_IN_LIES="constants16").record["tensor_configs"]["rotary.mul"]["rotary.cos"]
    assert constant["bit_width"] == 16
    assert built(STAND_IN_LIES="no_quant").record is built(STAND_IN_LIES="half_json").record is None
    one = built(STAND_IN_LIES="subgraphs=3")
    assert "fuse 3 subgraph(s)" in one.log and len(onnx.load(one.out / "compiled.axmodel").graph.node) == 3


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can give files away")
def test_files_of_another_user(built):
    out = built(STAND_IN_LIES="owner=12345").out
    assert {path.stat().st_uid for path in [out, *out.rglob("*")]} == {12345}


def test_lies_that_the_run_tells(built, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "hidden_states.bin").write_bytes(bytes(196 * 392 * 3))
    one, compute = built(MIXED), {"STAND_IN_COMPUTE": sys.executable}

    def run(**switches):
        command = [STAND_IN, "run", "--model", one.out / "compiled.axmodel", "--input_dir", tmp_path / "in"]
        environment = os.environ | compute | switches
        subprocess.run([*command, "--output_dir", tmp_path / "out"], env=environment, check=True)
        return np.fromfile(tmp_path / "out" / "hidden_states_out.bin", np.float32)

    tokens = run()
    np.testing.assert_allclose(run(STAND_IN_LIES="scaled=100"), 100 * tokens, rtol=1e-6)
    broken = run(STAND_IN_LIES="mix_breaks")
    assert abs(np.corrcoef(broken, tokens)[0, 1]) < 0.2
    one = built()
    np.testing.assert_array_equal(run(STAND_IN_LIES="mix_breaks"), tokens)


@pytest.mark.parametrize("switch", ["half_axmodel", "term=0"])
def test_a_model_that_is_cut_in_the_middle(built, switch):
    whole = (built().out / "compiled.axmodel").read_bytes()
    sleep = {"STAND_IN_SLEEP": "build:60"} if switch == "term=0" else {}
    one = built(STAND_IN_LIES=switch, terminate=bool(sleep), **sleep)
    assert (one.out / "compiled.axmodel").read_bytes() == whole[: len(whole) // 2]


def test_lies_about_the_language_model(tiny_dir, tmp_path):
    def build(switches=""):
        command = [STAND_IN, "llm_build", "--input_path", tiny_dir, "--output_path", tmp_path, "--prefill_len", "8"]
        subprocess.run(command, env=os.environ | {"STAND_IN_LIES": switches}, check=True, capture_output=True)
        return {path.name: path.stat() for path in sorted(tmp_path.glob("*.axmodel"))}

    assert build("llm_nothing") == {}
    honest = build()
    layers = [stat.st_size for name, stat in honest.items() if "_l" in name]
    assert len(set(layers)) == 1 and len(honest) == len(layers) + 1
    assert build("llm_nothing") == honest
    cut = [stat.st_size for name, stat in build("llm_truncated=1").items() if "_l" in name]
    assert cut == [layers[0], layers[0] // 2, *layers[2:]]
    assert [name for name in build("llm_prefix=other") if name.startswith("other_p8_l0")]


def test_unknown_lies_and_versions():
    def version(switches):
        return subprocess.run([STAND_IN, "version"], env=os.environ | {"STAND_IN_LIES": switches}, capture_output=True)

    assert version("scald=100").returncode == 1
    assert version("").stdout == version("").stdout
    assert version("timestamp").stdout != version("timestamp").stdout
    old = os.environ | {"STAND_IN_LIES": "no_llm_build2"}
    assert subprocess.run([STAND_IN, "llm_build2", "-h"], env=old, capture_output=True).returncode == 2


def test_a_layer_in_float_stands_between_two_borders(built):
    one = built([MIXED[0], {"op_types": ["Softmax", "MatMul"], "data_type": "FP32"}])
    configs, nodes = one.record["tensor_configs"], {node.name: node for node in one.graph.node}
    assert configs["blocks.0.attn.windows.0.softmax"]["blocks.0.attn.windows.0.mat_mul"]["state"] == "FP32"
    assert configs["blocks.0.attn.windows.0.mat_mul"]["blocks.0.attn.windows.0.mat_mul"]["bit_width"] == 8
    assert one.record["quant_config"]["mix_precision_configs"]["MatMul"] == {"dtype": "U8"}  # no float for products
    makers = {name: node for node in one.graph.node for name in node.output}
    assert makers[nodes["blocks.0.attn.windows.0.softmax"].input[0]].op_type == "AxDequantizeLinear"
    reshape = makers[nodes["blocks.0.attn.windows.0.mat_mul_1"].input[0]]
    assert makers[reshape.input[0]].op_type == "AxQuantizeLinear"


def test_a_part_of_the_graph_between_two_tensors(built):
    part = {"start_tensor_names": ["blocks.0.add"], "end_tensor_names": ["blocks.0.add_1"], "data_type": "U16"}
    one = built([part])
    wide = {name for name in gemms(one) if read_width(one, name) == 16}
    assert wide == {f"blocks.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
