"""A build's output directory written by hand, in the forms that public reports of real builds show."""

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

# hidden_states -> fc (Gemm) -> x -> mm (MatMul) -> y -> turn (Reshape) -> z -> scale (Mul) -> s -> last (Gemm)
CHAIN = {"fc": "Gemm", "mm": "MatMul", "turn": "Reshape", "scale": "Mul", "last": "Gemm"}
MADE = ["x", "y", "z", "s", "hidden_states_out"]
CONSTANTS = {"fc": ["fc.w"], "mm": ["mm.w"], "turn": ["shape"], "scale": ["factor"], "last": ["last.w"]}
TYPES = {8: TensorProto.UINT8, 16: TensorProto.UINT16, 32: TensorProto.FLOAT}


def model() -> onnx.ModelProto:
    """The graph that was built."""
    shapes = dict.fromkeys(("hidden_states", *MADE), (1, 4)) | {"shape": (2,), "factor": (1, 4)}
    nodes, read = [], "hidden_states"
    for (name, kind), made in zip(CHAIN.items(), MADE, strict=True):
        nodes.append(helper.make_node(kind, [read, *CONSTANTS[name]], [made], name=name))
        read = made
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    stored = [
        helper.make_tensor(name, TensorProto.FLOAT, shapes.get(name, (4, 4)), [0.5] * (16 if "." in name else 4))
        for names in CONSTANTS.values()
        for name in names
        if name != "shape"
    ]
    stored.append(helper.make_tensor("shape", TensorProto.INT64, (2,), [1, 4]))
    ends = [values["hidden_states"]], [values["hidden_states_out"]]
    graph = helper.make_graph(nodes, "g", *ends, stored, value_info=[values[name] for name in MADE[:-1]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def entry(bits, state="ACTIVATED", number=1, signed=False):
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    policy = {"PER_TENSOR": state != "BAKED", "PER_CHANNEL": state == "BAKED", "LINEAR": True, "PER_BLOCK": False}
    entry = {"bit_width": bits, "policy": policy, "state": state, "quant_min": least, "quant_max": most}
    return entry | {"hash": number, "dominator": number if state != "OVERLAPPED" else 1}


def record(widths: dict[str, int]) -> dict:
    """quant_axmodel.json: operator -> bits of what it reads; what it writes has the next operator's width."""
    tensors, read, following = {}, "hidden_states", [*list(widths.values())[1:], 8]
    for (name, bits), made, after in zip(widths.items(), MADE, following, strict=True):
        baked = {
            constant: entry(8, "BAKED", 2, signed=True) | {"policy": {}}
            for constant in CONSTANTS[name]
            if constant != "shape"
        }
        tensors[name] = {read: entry(bits), **baked, made: entry(after, "OVERLAPPED", 99)}
        read = made
    values = {"1": {"scale": [0.01], "zero_point": [128.0]}, "2": {"scale": [0.1, 0.2], "zero_point": [0.0, 0.0]}}
    return {
        "quant_config": {"input_configs": {}, "mix_precision_configs": {"Gemm": {"dtype": "U8"}}},
        "tensor_configs": tensors,
        "dispatchings": dict.fromkeys([*widths, "op_7:onnx.Silu"], "AX_NPU_AX650_INT8"),
        "values": values,
    }


def edges(widths: dict[str, int], renamed: tuple[str, ...] = ()) -> onnx.ModelProto:
    """quant_axmodel.onnx: a border in front of each operator that reads another width than the one before wrote."""
    nodes, infos, read, before = [], [], "hidden_states", None
    for (name, bits), made in zip(widths.items(), MADE, strict=True):
        if before not in (None, bits):
            nodes.append(helper.make_node("AxRequantizeLinear", [read], [f"{read}_requant"], name=f"{read}_border"))
            read = f"{read}_requant"
            infos.append(helper.make_tensor_value_info(read, TYPES[bits], (1, 4)))
        kind = f"AxQuantized{CHAIN[name]}" if CHAIN[name] != "Reshape" else "AxReshape"
        shown = f"op_1:onnx.{CHAIN[name]}" if name in renamed else name
        nodes.append(helper.make_node(kind, [read, *CONSTANTS[name]], [made], name=shown))
        infos.append(helper.make_tensor_value_info(made, TYPES[bits], (1, 4)))
        read, before = made, bits
    first = helper.make_tensor_value_info("hidden_states", TYPES[next(iter(widths.values()))], (1, 4))
    stored = [
        helper.make_tensor(name, TensorProto.INT8, (4,), [1] * 4) for names in CONSTANTS.values() for name in names
    ]
    return helper.make_model(helper.make_graph(nodes, "q", [first], [infos[-1]], stored, value_info=infos[:-1]))


LOG = """\
2026-01-01 10:00:00.000 | INFO     | yamain.command.build:quant:1 - Transformer optimize level: 1
\x1b[32m Layer Config Table \x1b[0m
┏━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━┓
┃ Op Type / Layer name ┃ Precision ┃
┡━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━┩
│ Gemm                 │ U8        │
└──────────────────────┴───────────┘
[10:00:01] AX Set MixPrecision Pass Running ...
--------- Quantization Snapshot ---------
Num of Op:                    [5]
BAKED: [4]
OVERLAPPED: [5]
ACTIVATED: [5]
Network Quantization Finished.
2026-01-01 10:00:02.000 | INFO | yamain: fuse {subgraphs} subgraph(s)
2026-01-01 10:00:03.000 | INFO | yasched.test_onepass:results2model:1 - max_cycle = 287,211
group 0 QuantAxModel macs: 48
"""
TABLE = """\
                 Quant Precision Table【PerLayer Reference】
┏━━━━━━━━━━┳━━━━━━┳━━━━━━━━┳━━━━━━━┳━━━━━━━┳━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━┓
┃ Operator ┃ Type ┃ Output ┃ Shape ┃ DType ┃ QDType ┃ Cosin  ┃ MSE      ┃
┡━━━━━━━━━━╇━━━━━━╇━━━━━━━━╇━━━━━━━╇━━━━━━━╇━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━┩
│ fc       │ Gemm │ x      │ (1,4) │ FP32  │ U8     │ 0.9999 │ 0.00001  │
├──────────┼──────┼────────┼───────┼───────┼────────┼────────┼──────────┤
│ a_very_l │ Gemm │ y      │ (1,4) │ FP32  │ U16    │ 0.9987 │ 0.00002  │
│ ong_name │      │        │       │       │        │        │          │
└──────────┴──────┴────────┴───────┴───────┴────────┴────────┴──────────┘
"""


def event(name, start, length, tid="conv0", cname=""):
    arguments = {"label": name, "cname": cname, "dur": length, "starts": start}
    return {"ph": "X", "pid": "subgraph_npu_0", "tid": tid, "name": name, "ts": start, "dur": length} | {
        "args": arguments
    }


def trace() -> dict:
    """Two engines at once: 6,000 cycles of events within a span of 4,000."""
    events = [
        event("ld:xxh128:0badc0de", 0.0, 1.0, "sdma4", "ld:param"),
        event("fc_0_12__0", 1.0, 2.0),
        event("op_7:onnx.Silu_s12_gop_1", 1.0, 1.0, "teng2"),
        event("x_border_3", 2.0, 0.5, "teng2"),
        event("unknown_0", 2.5, 1.5, "teng2"),
    ]
    return {"traceEvents": [{"ph": "M", "name": "process_name"}, *events], "displayTimeUnit": "ns"}


def write_build(directory: Path, widths: dict[str, int], subgraphs: int = 1) -> Path:
    """All files of a build."""
    for place in ("quant/debug", "compiler/debug/subgraph_npu_0/b1"):
        (directory / place).mkdir(parents=True)
    (directory / "quant" / "quant_axmodel.json").write_text(json.dumps(record(widths)))
    onnx.save(edges(widths), directory / "quant" / "quant_axmodel.onnx")
    (directory / "quant" / "debug" / "precision_analysis_table.txt").write_text(TABLE)
    (directory / "compiler" / "debug" / "subgraph_npu_0" / "b1" / "trace.json").write_text(json.dumps(trace()))
    (directory / "build.log").write_text(LOG.replace("{subgraphs}", str(subgraphs)))
    return directory
