"""Step 6: the directory to upload to the board, with a manifest; and a check of a copy of it.

    python package_model.py CKPT OUT_DIR [--workdir DIR] [--prefill-len N] [--require-complete]
    python package_model.py --check DIR [--require-complete]     (the board's own Python suffices)

Reads:  CKPT; OUT_DIR, where `pulsar2 llm_build` writes; in the work directory the graphs, capture.json, pixels.npy,
        fidelity.json, build-output/.
Writes: OUT_DIR: the hub's JSON and tokenizer files, embeddings, vision axmodel, the runtime's tokenizer files,
        one directory of runtime settings per vision model (video308x308/), check/ with the captured frames and
        the host's answers, preprocess.py, check_board.py, this script, and manifest.json.
What the NPU compiler has not made yet is listed as missing; with --require-complete the exit code is then 1.
"""

from __future__ import annotations  # the board's Python may be older than the project's

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from qwen_vl_axera import cli
except ImportError:  # copied to the board alone: --check needs nothing else
    cli = None


def check(directory: Path, require_complete: bool = False) -> int:
    """Compares a directory with its manifest.json; prints what differs. Returns 0, 1 (differs) or 2 (no manifest)."""
    path = directory / "manifest.json"
    try:
        if not path.is_file():
            raise OSError("no such file" if not path.exists() else "no regular file")
        manifest = json.loads(path.read_bytes().decode("utf-8"))
        entries = [(entry["path"], entry["bytes"], entry["sha256"]) for entry in manifest["files"]]
        missing = [str(name) for name in manifest["missing"]]
        for name, size, digest in entries:
            name.encode("utf-8")  # a lone surrogate could not even be printed
            parts = Path(name).parts
            if not parts or ".." in parts or Path(name).anchor or "\0" in name:
                raise ValueError(f"{name!r} leaves the directory")
            if type(size) is not int or not isinstance(digest, str):
                raise ValueError(f"the entry of {name!r} is malformed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"error: {str(path)!a}: no usable manifest ({reason}); copy the directory again", file=sys.stderr)
        return 2
    problems = [problem for entry in entries if (problem := _problem(directory, *entry))]
    if not entries:
        problems.append("the manifest lists no files")
    problems += _unlisted(directory, {Path(name).as_posix() for name, _, _ in entries} | {path.name})
    problems += [f"not built when the package was made: {name}" for name in missing if require_complete]
    print("\n".join(problems or [f"{directory}: {len(entries)} files as the manifest says"]))
    if missing and not require_complete:
        print(f"incomplete: {len(missing)} files were not built when the package was made, the first: {missing[0]}")
    return 1 if problems else 0


def _unlisted(directory: Path, listed: set[str]) -> list[str]:
    """Compiled models that the manifest doesn't know, which the runtime might load; other such files are warned of."""
    found = [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if not path.is_dir()]
    unknown = [name for name in found if name not in listed and "__pycache__" not in name.split("/")]
    models = [name for name in unknown if name.endswith(".axmodel")]
    others = [name for name in unknown if name not in models]
    if others:
        print(
            f"warning: {len(others)} files that the manifest does not list, the first: {others[0]!a}", file=sys.stderr
        )
    return [f"not in the manifest: {name!a}" for name in models]


def _problem(directory: Path, name: str, size: int, expected: str) -> str | None:
    path = directory / name
    try:
        if not path.is_file():
            return f"missing: {name}"
        if path.stat().st_size != size:
            return f"wrong size: {name}: {path.stat().st_size} bytes, expected {size}"
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for data in iter(lambda: file.read(1 << 20), b""):
                digest.update(data)
    except OSError as error:
        return f"unreadable: {name}: {error.strerror}"
    return None if digest.hexdigest() == expected else f"wrong content: {name}"


def build_parser():
    raw = argparse.RawDescriptionHelpFormatter
    parser = cli.parser(__doc__) if cli else argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("ckpt", metavar="CKPT", type=Path, nargs="?", help="directory of a Qwen2.5-VL checkpoint")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, nargs="?", help="made when missing")
    parser.add_argument("--workdir", metavar="DIR", type=Path, default=Path(), help="default: the current directory")
    parser.add_argument("--prefill-len", type=int, metavar="N", help="which layers, where two builds lie in OUT_DIR")
    parser.add_argument("--require-complete", action="store_true", help="exit 1 while something is missing")
    parser.add_argument("--check", metavar="DIR", type=Path, help="verify a copy instead of making a package")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.check is not None:
        if args.ckpt is not None:
            parser.error("--check takes one directory and nothing else")
        return check(args.check, args.require_complete)
    if args.out_dir is None:
        parser.error("expected CKPT and OUT_DIR, or --check DIR")
    if cli is None:
        parser.error("only --check works without the project beside this script")

    from qwen_vl_axera.board.package import assemble, print_table
    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.files import check_out

    check_out(args.ckpt, args.out_dir)
    package = assemble(Checkpoint(args.ckpt), args.out_dir, args.workdir, args.prefill_len)
    print_table(package)
    return cli.EXIT_CHECK_FAILED if args.require_complete and package.missing else cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main) if cli else main())
