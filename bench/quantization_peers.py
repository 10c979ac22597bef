"""Seconds and memory of one quantised setting: our simulation against ONNX Runtime's static quantisation.

    python bench/quantization_peers.py GRAPH ARCHIVE [--samples 8] [--steps 4] [--rounds 1]

Both calibrate on the archive's first samples and give the tokens of its last ones with every activation at 8 bits:
ONNX Runtime by writing a QDQ graph (MinMax, S8 weights per channel) and running it. It quantises the inside of norms,
which the compiler fuses, and knows neither 16-bit operands of mixed types nor the compiler's shared scales; so only the
cost is compared. Each runs in a process of its own. At true size ONNX Runtime takes minutes and more than 12 GB.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import run
from qwen_vl_axera import cli


def read_samples(archive: Path, samples: int, steps: int) -> tuple[list, list]:
    """The first samples to calibrate on, the last ones to run."""
    from qwen_vl_axera.errors import InputError
    from qwen_vl_axera.preflight.archive import iter_samples

    found = [values for values, _, _ in iter_samples(archive)]
    if len(found) < samples + steps:
        raise InputError(f"{archive}: {len(found)} samples, {samples + steps} are asked for")
    return found[:samples], found[-steps:]


def ours(graph: Path, samples: list, steps: list) -> None:
    from qwen_vl_axera.quantization.execution import Execution, WeightStore, batches
    from qwen_vl_axera.quantization.network import Network
    from qwen_vl_axera.quantization.observers import calibrate
    from qwen_vl_axera.quantization.plan import uniform

    network = Network(graph)
    ranges = calibrate(network, samples)
    execution = Execution(network, uniform(network, "U8"), ranges, WeightStore(network))
    for batch in batches(steps):
        execution.run(batch)


def theirs(graph: Path, samples: list, steps: list) -> None:
    import tempfile

    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.feeds = iter({"hidden_states": values} for values in samples)

        def get_next(self):
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "quantised.onnx"
        quantize_static(
            graph,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
        session = onnxruntime.InferenceSession(target)
        for values in steps:
            session.run(None, {"hidden_states": values})


WAYS = {"ours": ours, "onnxruntime": theirs}


def build_parser():
    parser = cli.parser(__doc__)
    parser.add_argument("graph", type=Path, metavar="GRAPH")
    parser.add_argument("archive", type=Path, metavar="ARCHIVE")
    parser.add_argument("--samples", type=cli.positive, default=8, metavar="N", help="to calibrate on (default: 8)")
    parser.add_argument("--steps", type=cli.positive, default=4, metavar="N", help="to run (default: 4)")
    parser.add_argument("--rounds", type=cli.positive, default=1, metavar="N", help="the fastest counts (default: 1)")
    parser.add_argument("--only", choices=WAYS, help="one of them, in this process")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.only:
        given = read_samples(args.archive, args.samples, args.steps)
        start = time.monotonic()
        WAYS[args.only](args.graph, *given)
        print(json.dumps({"seconds": time.monotonic() - start}))
        return cli.EXIT_OK
    rest = [args.graph, args.archive, "--samples", args.samples, "--steps", args.steps]
    found = {}
    for way in WAYS:
        runs = [run(["bench/quantization_peers.py", *rest, "--only", way]) for _ in range(args.rounds)]
        seconds = min(json.loads(made.stdout.splitlines()[-1])["seconds"] for made in runs)
        found[way] = seconds, min(made.peak for made in runs)
        print(f"{way:<12} {found[way][0]:7.2f} s  {found[way][1] / 1e9:6.2f} GB peak")
    ratios = [theirs / ours for ours, theirs in zip(found["ours"], found["onnxruntime"], strict=True)]
    print(f"onnxruntime / ours: {ratios[0]:.1f} times the time, {ratios[1]:.1f} times the memory")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
