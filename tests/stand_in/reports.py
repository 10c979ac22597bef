"""What a build says besides its model: the log's lines, the precision table, the modelled cycles.

The forms are those of the manual and of public logs; every figure of time is made up.
"""

import json
import os
import textwrap

from lies import lie
from quantized import size

PRODUCTS = {8: 3000, 16: 1100}  # multiplications per cycle
WIDTHS = (28, 18, 28, 20, 8, 8, 10, 10)  # of the precision table's cells
COLUMNS = ("Operator", "Type", "Output Tensor", "Shape", "DType", "QDType", "Cosin", "MSE")
PASSES = (
    "Set Float Op Table, Set MixPrecision, Set LN Quant dtype, Reset Mul Config, Refine Operation Config, "
    "Quantization Fusion, Quantization Simplify, Parameter Quantization, Runtime Calibration, Quantization Alignment, "
    "Refine Int Parameter, Refine Scale, Passive Parameter Quantization, Parameter Baking"
).split(", ")


def say(where, text):
    print(f"2026-01-01 00:00:00.000 | INFO     | {where} - {text}", flush=True)


def box(rows, widths):
    """A table of the compiler's: cells that are too long go on in the next line of their row."""
    line = {part: part[1].join("─" * (width + 2) for width in widths) for part in ("┌┬┐", "├┼┤", "└┴┘")}
    lines = [f"┌{line['┌┬┐']}┐"]
    for number, row in enumerate(rows):
        if number:
            lines.append(f"├{line['├┼┤']}┤")
        cells = [textwrap.wrap(str(cell), width) or [""] for cell, width in zip(row, widths, strict=True)]
        for place in range(max(map(len, cells))):
            parts = [cell[place] if place < len(cell) else "" for cell in cells]
            lines.append("│" + "│".join(f" {part:<{width}} " for part, width in zip(parts, widths, strict=True)) + "│")
    return "\n".join([*lines, f"└{line['└┴┘']}┘"])


def quantization_log(build):
    """What is printed while the graph is quantised."""
    entries = build.quant.get("layer_configs", [])
    rows = [("Op Type / Layer name", "Precision")]
    for entry in entries:
        whole = entry.get("start_tensor_names") and "DEFAULT -> DEFAULT"
        names = [
            *entry.get("op_types", []),
            entry.get("op_type"),
            *entry.get("layer_names", []),
            entry.get("layer_name"),
        ]
        rows += [(name, entry.get("data_type", "U8")) for name in [whole, *names] if name]
    print("Layer Config Table\n" + box(rows, (40, 10)))
    print(f"Transformer optimize level: {build.quant.get('transformer_opt_level', 0)}")
    for name in PASSES:
        print(f"[00:00:00] AX {name} Pass Running ...")
    print("Calibration Progress(Phase 1): 100%|██████████| 32/32 [00:00<00:00,  9.99it/s]")
    print("--------- Quantization Snapshot ---------")
    states = build.census()
    print(f"Num of Op:                    [{len(build.operators)}]")
    print(f"Num of Quantization Config:   [{sum(states.values())}]")
    for state, count in states.items():
        print(f"{state}: [{count}]")
    print(f"Network Quantization Finished.\nquant.utils: group 0 QuantAxModel macs: {macs(build):,}", flush=True)


def macs(build):
    return sum(build.products(operator) for operator in build.operators)


def cycles(build, operator):
    """How long an operator works, in NPU cycles."""
    elements = sum(size(build.graph.tensors.get(name, (1, []))[1]) for name in operator.outputs)
    return 200 + build.products(operator) // PRODUCTS[min(build.own_type(operator)[0], 16)] + elements // 8


def compile_log(build):
    """What is printed while the quantised graph is compiled."""
    count = int(lie("subgraphs") or 1)
    say("yamain.command.build:compile:1", f"fuse {count} subgraph(s)")
    for number in range(count):
        kind = "CPU" if number % 2 else "NPU"
        say("yamain.command.build:compile:1", f"subgraph [{number}], group: 0, type: GraphType.{kind}")
    for stage in ("tiling op", "build op serially", "add ddr swap", "calc input/output dependencies", "build jobs"):
        print(f"{stage}...   ━━━━━━━━━━ 6/6 0:00:00")
    total = sum(cycles(build, operator) for operator in build.operators)
    parts = [number for number in range(count) if number % 2 == 0]
    for _ in parts:
        say("yasched.test_onepass:results2model:1", f"max_cycle = {total // len(parts):,}")


def write_table(path, build):
    """precision_analysis_table.txt; all of its numbers are good, as the tool's own often are."""
    method = build.quant.get("precision_analysis_method", "PerLayer")
    mode = build.quant.get("precision_analysis_mode", "Reference")
    title = method if mode == "Reference" and method == "EndToEnd" else f"{method} {mode}"
    rows = [COLUMNS]
    for operator in build.operators:
        for name in operator.outputs:
            bits, signed = build.types[name]
            quantised = "FP32" if bits == 32 else f"{'S' if signed else 'U'}{bits}"
            shape = tuple(build.graph.tensors.get(name, (1, []))[1])
            rows.append((operator.name, operator.kind, name, shape, "FP32", quantised, "0.99981", "0.00012"))
    write(path, f"Quant Precision Table【{title}】\n{box(rows, WIDTHS)}\n")


def write_trace(directory, build):
    """trace.json and op_profile.csv: weights are loaded while the operator before works, so parts overlap."""
    events, rows, now = [], [], 0.0
    for number, operator in enumerate(build.operators):
        work = cycles(build, operator)
        queue = "conv0" if build.products(operator) else "cv3" if operator.passive else "teng2"
        if build.products(operator) and any(name in build.graph.initializers for name in operator.inputs):
            load = {"name": f"ld:xxh128:{number:032x}", "tid": "sdma4", "cname": "ld:param"}
            events.append(event(load, max(0.0, now - work / 2000), work / 2500, operator))
        for tile in range(2):
            part = {"name": f"{operator.name}_{number}_{tile}", "tid": queue, "cname": "compute"}
            events.append(event(part, now, work / 2000, operator))
            now += work / 2000
        rows.append(f"{operator.name},{operator.kind},{work},{work * 8}")
    os.makedirs(directory, exist_ok=True)
    write(os.path.join(directory, "trace.json"), json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}))
    # The names of the columns are visible nowhere: nobody should read them.
    write(os.path.join(directory, "op_profile.csv"), "\n".join(["op,type,cycles,bytes", *rows, ""]))


def event(part, start, duration, operator):
    """An event; its unit of time is 1000 cycles."""
    start, duration = round(start, 6), round(duration, 6)
    arguments = {"label": operator.name, "inputs": ",".join(operator.inputs), "outputs": ",".join(operator.outputs)}
    arguments |= {"cname": part["cname"], "dur": duration, "starts": start, "dep_by": ""}
    whole = {"ph": "X", "pid": "subgraph_npu_0", "tid": part["tid"], "name": part["name"], "cat": ""}
    return whole | {"ts": start, "dur": duration, "args": arguments}


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
