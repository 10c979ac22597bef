"""What a build left: every part known with a verdict, or not known; a failure only with evidence."""

import json
from functools import partial

import onnx
import pytest

from qwen_vl_axera.compiled import trace as traces
from qwen_vl_axera.compiled.build import read_build
from qwen_vl_axera.compiled.edges import EDGES
from qwen_vl_axera.compiled.log import kept_log, parse_log
from qwen_vl_axera.compiled.quantized import QUANTIZED, read_quantized
from qwen_vl_axera.compiled.record import Build
from qwen_vl_axera.compiled.trace import read_trace
from qwen_vl_axera.compiler.schema import BuildConfig
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import write_record
from tests.compiled.directory import CHAIN, LOG, edges, model, trace, write_build

DEFAULT = {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"], "data_type": "U16"}
GEMM = {"op_types": ["Gemm"], "data_type": "U8"}
MIX = {"fc": 8, "mm": 16, "turn": 16, "scale": 16, "last": 8}
TRACE = "compiler/debug/subgraph_npu_0/b1/trace.json"


@pytest.fixture
def directory(tmp_path):
    return write_build(tmp_path / "out", MIX)


def build(directory, *entries):
    return read_build(directory, BuildConfig.model_validate({"quant": {"layer_configs": list(entries)}}), model())


def statuses(found):
    return {finding.part: finding.status for finding in found.findings}


def change(directory, edit):
    path = directory / QUANTIZED
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_an_honest_build_is_known_in_every_part(directory):
    found = build(directory, DEFAULT, GEMM)
    assert found.sound and found.precision == "ok" and set(statuses(found).values()) == {"ok"}
    assert [(one.seen, one.obeyed) for one in found.selectors] == [(2, 2), (2, 2)]
    assert (found.kept, found.nodes, found.subgraphs, found.cycles, found.macs) == (5, 5, 1, 287211, 48)
    assert found.widths["Gemm"] == {"8": 2} and found.widths["MatMul"] == {"16": 1}
    assert found.constants == {"8": 1} and found.fused == {"Silu": 1}  # the factor of a Mul at 16 bits
    assert found.states == {"BAKED": 4, "OVERLAPPED": 5, "ACTIVATED": 5}
    assert found.compiler_selectors == {"Gemm": "U8"}
    assert (found.lowest.operator, found.lowest.cosine, found.lowest.rows) == ("a_very_long_name", 0.9987, 2)


def test_a_profile_is_the_span_and_not_the_sum(directory):
    profile = build(directory).profile
    assert profile.span == 4000
    kinds = {"Gemm": 2000, "Silu": 1000, "weights": 1000, "AxRequantizeLinear": 500, "other": 1500}
    assert profile.kinds == kinds and sum(kinds.values()) == 6000
    assert profile.engines == {"sdma4": 1000, "conv0": 2000, "teng2": 3000}


def test_more_than_one_subgraph_is_a_failure(tmp_path):
    found = build(write_build(tmp_path / "out", MIX, subgraphs=19))
    assert not found.sound and statuses(found)["subgraphs"] == "failed"
    log = parse_log(["subgraph [1], group: 0, type: GraphType.CPU", "fuse 1 subgraph(s)"])
    assert (log.cpu, log.subgraphs) == (1, 1)


def test_what_a_node_writes_and_its_weights_say_nothing_of_it(directory):
    """`mm` writes for a reader of 16 bits and `scale` for one of 8; weights are S8 everywhere."""
    assert build(directory, {"layer_names": ["mm", "scale"], "data_type": "U16"}).precision == "ok"
    assert build(directory, {"layer_names": ["fc", "last"], "data_type": "U8"}).precision == "ok"


@pytest.mark.parametrize("spoil", ["nothing", "no edges", "older form"])
def test_the_width_is_known_with_and_without_edges(directory, spoil):
    if spoil != "nothing":
        (directory / EDGES).unlink()
    if spoil == "older form":
        change(directory, lambda value: value.update(configs=value.pop("tensor_configs")))
    found = build(directory, DEFAULT, GEMM)
    assert [(one.seen, one.obeyed) for one in found.selectors] == [(2, 2), (2, 2)]


def test_a_fused_away_tensor_means_nothing(directory):
    """The record still has `x` at 8 bits for `mm`, which reads another tensor."""

    def narrow(value):
        value["tensor_configs"]["mm"]["x"]["bit_width"] = 8

    change(directory, narrow)
    assert build(directory, {"layer_names": ["mm"], "data_type": "U16"}).precision == "ok"
    (directory / EDGES).unlink()  # the record alone says otherwise
    assert build(directory, {"layer_names": ["mm"], "data_type": "U16"}).precision == "failed"


@pytest.mark.parametrize(
    ("entry", "status", "words"),
    [
        ({"layer_names": ["mm"], "data_type": "U8"}, "failed", "0 of 1 nodes have it; not mm"),
        ({"layer_names": ["mm", "fc"], "data_type": "U16"}, "failed", "1 of 2 nodes have it; not fc"),
        ({"op_types": ["MatMul"], "data_type": "U8"}, "failed", "0 of 1"),
        ({"op_types": ["MatMul", "Gemm"], "data_type": "U16"}, "warning", "1 of 3"),
        ({"layer_names": ["mm", "gone"], "data_type": "U16"}, "warning", "not in the built model: gone"),
        ({"op_types": ["RMSNormalization"], "data_type": "U16"}, "ok", "no node is left to it"),
        ({"op_types": ["Reshape"], "data_type": "U16"}, "ok", "no node is left to it"),
        ({"start_tensor_names": ["x"], "end_tensor_names": ["z"], "data_type": "U16"}, "ok", "1 of 1"),
        ({"start_tensor_names": ["nowhere"], "end_tensor_names": ["DEFAULT"], "data_type": "U16"}, "ok", "no node"),
        ({"op_types": ["Gemm"], "data_type": "FP32"}, "failed", "0 of 2"),
    ],
)
def test_an_entry_fails_only_where_nodes_are_known_to_have_another_width(directory, entry, status, words):
    found = build(directory, entry)
    assert found.selectors[0].status == found.precision == status
    assert words in found.lines()[-1] and found.sound


def test_an_entry_that_others_win_over_is_none_without_effect(directory):
    """The search's own fallback: all Gemms back at 16 bits still writes the entry for their type."""
    found = build(directory, {"op_types": ["Gemm"], "data_type": "U16"}, {"layer_names": ["fc", "last"]} | U8)
    assert found.precision == "ok" and "other entries win" in found.selectors[0].detail


U8 = {"data_type": "U8"}


def rename_all(directory):
    def rename(value):
        names = {name: f"op_{number}:onnx.{kind}" for number, (name, kind) in enumerate(CHAIN.items())}
        for part in ("tensor_configs", "dispatchings"):
            value[part] = {names.get(name, name): held for name, held in value[part].items()}

    change(directory, rename)
    onnx.save(edges(MIX, tuple(CHAIN)), directory / EDGES)


def half(directory, name):
    data = (directory / name).read_bytes()
    (directory / name).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("spoil", "part", "words"),
    [
        (rename_all, "precision", "none of the graph's 5 names"),
        (lambda d: (d / QUANTIZED).write_text('{"tensors": {}}'), "precision", "no tensors under tensor_configs"),
        (lambda d: (d / QUANTIZED).write_text('{"tensor_configs": {}}'), "precision", "no tensors under"),
        (lambda d: (d / QUANTIZED).write_text("[" * 100_000), "precision", "is no JSON"),
        (lambda d: (d / QUANTIZED).unlink(), "precision", "the build left no quant/quant_axmodel.json"),
        (partial(half, name=QUANTIZED), "precision", "is no JSON (half-written?)"),
        (partial(half, name=EDGES), "edges", "is no ONNX graph"),
        (partial(half, name="build.log"), None, ""),
        (lambda d: (d / "build.log").write_bytes(b"\xff\x00 nothing"), "log", "none of the known lines"),
        (lambda d: (d / TRACE).write_text('{"traceEvents": [{"name": 3}]}'), "profile", "no events with ts and dur"),
        (lambda d: (d / TRACE).unlink(), "profile", "the build left no compiler/debug"),
        (lambda d: (d / "quant/debug/precision_analysis_table.txt").write_text("│ a │"), "layer by layer", "columns"),
    ],
)
def test_what_cannot_be_read_is_not_known_and_no_failure(directory, spoil, part, words):
    spoil(directory)
    found = build(directory, DEFAULT, {"layer_names": ["mm"], "data_type": "U16"})
    assert found.sound and found.precision != "failed"
    if part:
        (finding,) = [one for one in found.findings if one.part == part and one.status == "not known"]
        assert words in finding.detail


def test_unknown_states_and_widths_are_counted_and_left_out(directory):
    def spoil(value):
        value["tensor_configs"]["mm"] = {"x": 3, "y": {"state": "NEW", "bit_width": 16}, "a/b": {"bit_width": 12}}
        value["values"] = {"1": {"scale": "many"}, "99": [1]}

    change(directory, spoil)
    found = build(directory, DEFAULT)
    assert found.sound and "2 entries have no known state or width" in "\n".join(found.lines())


def test_scales_that_are_none_are_said(directory):
    text = (directory / QUANTIZED).read_text().replace("[0.01]", "[NaN, -1.0, 0]")
    (directory / QUANTIZED).write_text(text)
    found = build(directory, DEFAULT, GEMM)
    assert statuses(found)["scales"] == "warning" and found.sound and found.precision == "ok"
    change(directory, lambda value: value["values"]["1"].update(scale=[0.0]))  # of a tensor of zeros
    assert "scales" not in statuses(build(directory))


def test_a_scale_stands_under_the_hash_or_the_dominator(directory):
    quantized = read_quantized(directory / QUANTIZED).operators
    assert quantized["fc"]["hidden_states"].scale == (0.01,) and not quantized["fc"]["hidden_states"].signed
    assert quantized["fc"]["x"].scale == (0.01,)  # OVERLAPPED: its own hash has no value
    assert quantized["fc"]["fc.w"].scale == (0.1, 0.2) and quantized["fc"]["fc.w"].signed


def test_a_build_of_another_size_is_said(directory):
    (directory / "build.log").write_text(LOG.replace("macs: 48", "macs: 48,000"))
    assert statuses(build(directory))["multiply-accumulates"] == "warning"


def test_a_long_trace_is_read_in_pieces(directory, monkeypatch):
    whole = read_trace(directory / TRACE, {"fc": "Gemm"})
    monkeypatch.setattr(traces, "PIECE", 7)
    assert read_trace(directory / TRACE, {"fc": "Gemm"}) == whole
    half(directory, TRACE)
    assert 0 < read_trace(directory / TRACE, {}).span < whole.span
    monkeypatch.setattr(traces, "LARGEST", 100)
    with pytest.raises(InputError, match="are not read"):
        read_trace(directory / TRACE, {})


def test_a_trace_takes_no_memory_that_grows_with_it(tmp_path):
    event = json.dumps(trace()["traceEvents"][2])
    with (tmp_path / "trace.json").open("w") as file:
        file.write('{"displayTimeUnit": "ns", "traceEvents": [')
        file.writelines(event + "," for _ in range(100_000))
        file.write(event + "]}")
    import tracemalloc

    tracemalloc.start()
    assert read_trace(tmp_path / "trace.json", {"fc": "Gemm"}).kinds == {"Gemm": 2000 * 100_001}
    assert tracemalloc.get_traced_memory()[1] < 16 << 20 < (tmp_path / "trace.json").stat().st_size
    tracemalloc.stop()


def test_an_earlier_builds_files_are_not_taken_for_this_ones(directory):
    with pytest.raises(RuntimeError), kept_log(directory) as lines:
        lines.append("fuse 1 subgraph(s)")
        raise RuntimeError
    assert (directory / "build.log").read_text() == "fuse 1 subgraph(s)\n"
    found = build(directory, DEFAULT)
    assert {name for name, status in statuses(found).items() if status == "not known"} >= {"precision", "profile"}


def test_what_is_read_can_be_written_again(directory, tmp_path):
    """Half a character in a name, a count of 19 digits, an object in the place of a word."""

    def spoil(value):
        value["tensor_configs"]["\ud800/x"] = {"\udfff": {"state": "ACTIVATED", "bit_width": 8, "hash": 1}}
        value["quant_config"]["mix_precision_configs"]["\ud800"] = {"dtype": ["\ud800"] * 1000}
        value["values"]["1"]["scale"] = [-1]

    change(directory, spoil)
    (directory / EDGES).unlink()
    (directory / "build.log").write_text("max_cycle = 9,999,999,999,999,999\nfuse 1 subgraph(s)\n")
    events = trace()
    events["traceEvents"] += [event | {"tid": "\ud800" * 99, "dur": 1e11} for event in events["traceEvents"][1:]]
    (directory / TRACE).write_text(json.dumps(events))
    found = build(directory, DEFAULT)
    write_record(tmp_path / "build.json", Build, found)
    assert found.sound and "scales" in statuses(found)
