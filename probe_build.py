"""Before the whole build: a few blocks of the tower through the real compiler, in minutes.

    python probe_build.py CKPT [--config FILE] [--fallback FILE] [--window-mode FORM]... [--all] [--opset N]
                          [--chip CHIP] [--extra=WORD]... [--accept-precision] [--json] [--workdir DIR]

Reads:  what export.py, run_video_by_sec.py and get_calib.py left in the work directory, and the build configuration
        (default: config_video.json, or config_video_normalized.json, as the graph needs). PULSAR2 names the compiler.
Writes: NAME_vision_probe.onnx and its uint8 twin in the form tried last, probe/FORM-RECIPE/ and probe.json. With --json
        the same is printed instead of the table.

The probe is the first windowed and the first full-attention block, and up to four blocks that a configuration names.
The forms of the window attention are tried in this order, until one compiles and gives ONNX Runtime's numbers:
grouped, folded, unrolled, dense. With --fallback both configurations are built; where the simulator says that the first
breaks the model, or it has no effect, probe.json names the second to go on with (`config_file`), and that is no
failure. Exit code 1 when no form works, or when nodes are known to have another width than layer_configs ask for.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.contract import CHIP, CHIPS, OPSETS, PROBE, WINDOW_MODES
from qwen_vl_axera.errors import InputError


def build_parser():
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="build configuration")
    parser.add_argument("--fallback", type=Path, metavar="FILE", help="to go on with where that one does not work")
    parser.add_argument(
        "--window-mode", choices=WINDOW_MODES, action="append", default=[], help="only this form; may be repeated"
    )
    parser.add_argument("--all", action="store_true", help="try every form; the fewest cycles win")
    parser.add_argument("--opset", type=int, choices=OPSETS, help="of the probe (default: the exported graph's)")
    parser.add_argument("--chip", choices=CHIPS, default=CHIP, help="target hardware (default: %(default)s)")
    parser.add_argument(
        "--extra", action="append", default=[], metavar="WORD", help="for the compiler as it is (--extra=--flag=value)"
    )
    parser.add_argument(
        "--accept-precision", action="store_true", help="another width than layer_configs ask for is no reason to stop"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.compiler.tool import VARIABLE, find_tool
    from qwen_vl_axera.fidelity.gate import find_graphs
    from qwen_vl_axera.files import plain, write_record
    from qwen_vl_axera.graph.files import load_graph, read_spec
    from qwen_vl_axera.preflight.plan import CONFIGS
    from qwen_vl_axera.probe.record import Probe
    from qwen_vl_axera.probe.run import probe, verdict

    workdir = cli.made_workdir(args.workdir, "export.py")
    checkpoint = Checkpoint(args.ckpt)
    tool = find_tool(os.environ.get(VARIABLE))
    if not tool:
        raise InputError(f"{tool.name}: set {VARIABLE} to a command or docker:IMAGE")
    graph, _ = find_graphs(checkpoint.name, workdir)
    config = args.config or CONFIGS[read_spec(load_graph(graph), graph).input]
    forms = args.window_mode or WINDOW_MODES
    options = {"fallback": args.fallback, "extra": args.extra, "accept_precision": args.accept_precision}
    report = probe(checkpoint, workdir, tool, config, forms, args.chip, args.all, args.opset, **options)
    write_record(workdir / PROBE, Probe, report)
    print(json.dumps(plain(report), indent=2, ensure_ascii=False) if args.json else verdict(report))
    return cli.EXIT_OK if report.passed else cli.EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main))
