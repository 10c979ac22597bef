"""The report: everything that a work directory holds, as one self-contained HTML page.

    python make_report.py CKPT [--workdir DIR] [--output report.html] [--preflight FILE]

Reads:  CKPT and what the other scripts left in the work directory; FILE is preflight.py's
        (default: preflight.json in the work directory). Absent parts are named, with the command that makes them.
Writes: report.html in the work directory. No model runs for it. The exit code is 0 also when the verdict is bad:
        the page tells, the checks themselves decide.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_vl_axera import cli
from qwen_vl_axera.contract import REPORT


def build_parser():
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the work directory")
    parser.add_argument("--preflight", type=Path, metavar="FILE", help="default: preflight.json in the work directory")
    cli.add_workdir(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.files import check_report
    from qwen_vl_axera.report.page import is_report, write_report

    workdir = cli.made_workdir(args.workdir, "run_video_by_sec.py")
    output = args.output or workdir / REPORT
    check_report(args.ckpt, output, ".html", is_report)
    findings = write_report(Checkpoint(args.ckpt), workdir, output, args.preflight)
    for finding in findings:
        if finding.status != "ok":
            print(f"{finding.status}: {' '.join(finding.text.split())}")
    print(output)
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
