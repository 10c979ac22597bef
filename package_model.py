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

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", sys.flags.isolated):
    sys.path.append(sys.path.pop(0))  # a json.py beside this script must not stand in for Python's own

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

FORMAT = 1  # of manifest.json
MANIFEST_BYTES, FILE_BYTES = 1 << 24, 1 << 34  # of the largest model a matrix takes 5 GB
MODEL = ".axmodel"


def check(directory: Path, require_complete: bool = False) -> int:
    """Compares a directory with its manifest.json; prints what differs. Returns 0, 1 (differs) or 2 (no manifest)."""
    path = directory / "manifest.json"
    try:
        entries, missing = read_manifest(path)
    except (OSError, ValueError) as error:
        reason = shown(" ".join(str(error).split())[:300])
        print(f"error: {shown(path)}: no usable manifest ({reason}); copy the directory again", file=sys.stderr)
        return 2
    problems = [problem for entry in entries if (problem := _problem(directory, *entry))]
    if not entries:
        problems.append("the manifest lists no files")
    problems += _unlisted(directory, {name for name, _, _ in entries} | {path.name})
    problems += [f"not built when the package was made: {shown(name)}" for name in missing if require_complete]
    say("\n".join(problems or [f"{shown(directory)}: {len(entries)} files as the manifest says"]))
    if missing and not require_complete:
        first = shown(missing[0])
        say(f"incomplete: {len(missing)} files were not built when the package was made, the first: {first}")
    return 1 if problems else 0


def say(text: str) -> None:
    """Prints a line. A reader that has gone (head, less) changes nothing: the exit code still says what was found."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def shown(text: object) -> str:
    """Text for a terminal: what steers one, or could not be encoded, as escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))


def read_manifest(path: Path) -> tuple[list[tuple[str, int, str]], list[str]]:
    """The files with their sizes and digests, and the names of those that were not built.

    Raises:
        OSError: it is missing or unreadable.
        ValueError: it is not one of ours, or says two things.
    """
    if not path.is_file():
        raise OSError("no such file" if not path.exists() else "no regular file")
    with path.open("rb") as file:
        data = file.read(MANIFEST_BYTES + 1)
    if len(data) > MANIFEST_BYTES:
        raise ValueError(f"more than {MANIFEST_BYTES >> 20} MB")
    try:
        manifest = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        if isinstance(manifest, dict) and type(manifest.get("format")) is int and manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, expected {FORMAT}")
        _fields("the manifest", manifest, format=int, checkpoint=str, complete=bool, missing=list, files=list)
        missing, entries = manifest["missing"], manifest["files"]
        for entry in entries:
            _fields("an entry of files", entry, path=str, bytes=int, sha256=str)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not all(isinstance(name, str) for name in missing):
        raise ValueError("missing: expected a list of names")
    if manifest["complete"] is bool(missing):
        raise ValueError(f"complete is {str(manifest['complete']).lower()}, {len(missing)} files are missing")
    names = [entry["path"] for entry in entries]
    for name in names:
        name.encode("utf-8")  # a lone surrogate is no name of ours
        parts = Path(name).parts
        if not parts or ".." in parts or Path(name).anchor or "\0" in name or Path(name).as_posix() != name:
            raise ValueError(f"{name!r} is no plain name within the directory")
    if len(set(names)) < len(names):
        raise ValueError("a file is listed twice")
    if max((entry["bytes"] for entry in entries), default=0) > FILE_BYTES:
        raise ValueError(f"a file of more than {FILE_BYTES >> 30} GB")
    return [(entry["path"], entry["bytes"], entry["sha256"]) for entry in entries], missing


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _fields(what: str, value: object, **kinds: type) -> None:
    """That a value is an object with exactly these fields; a bool is no number."""
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        raise ValueError(f"{what}: expected an object with {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(value[name]) is not kind:
            raise ValueError(f"{what}: {name} is {str(value[name])[:40]!r}, expected {kind.__name__}")


def _unlisted(directory: Path, listed: set[str]) -> list[str]:
    """Compiled models that the manifest doesn't know, which the runtime might load; other such files are warned of."""
    paths = [path for path in sorted(directory.rglob("*")) if path.is_symlink() or not path.is_dir()]
    unknown = [name for name in (path.relative_to(directory).as_posix() for path in paths) if name not in listed]
    # A directory here is a link to one: whatever models it holds are not looked for.
    models = [name for name in unknown if name.lower().endswith(MODEL) or (directory / name).is_dir()]
    others = [name for name in unknown if name not in models and "__pycache__" not in name.split("/")]
    if others:
        first = shown(others[0])
        print(f"warning: {len(others)} files that the manifest does not list, the first: {first}", file=sys.stderr)
    return [f"not in the manifest: {shown(name)}" for name in models]


def _problem(directory: Path, name: str, size: int, expected: str) -> str | None:
    path = directory / name
    try:
        if not path.is_file():
            return f"missing: {shown(name)}"
        if path.stat().st_size != size:
            return f"wrong size: {shown(name)}: {path.stat().st_size} bytes, expected {size}"
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for data in iter(lambda: file.read(1 << 20), b""):
                digest.update(data)
    except OSError as error:
        return f"unreadable: {shown(name)}: {error.strerror}"
    return None if digest.hexdigest() == expected else f"wrong content: {shown(name)}"


class _Parser(argparse.ArgumentParser):
    """One line for an error, without the usage."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {shown(message)} (--help lists the flags)\n")


def build_parser():
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(description=__doc__, formatter_class=raw)
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
    try:
        from qwen_vl_axera import cli
    except ImportError:
        parser.error("only --check works without the project beside this script")

    from qwen_vl_axera.board.package import assemble, print_table
    from qwen_vl_axera.checkpoint.tensors import Checkpoint
    from qwen_vl_axera.files import check_out

    check_out(args.ckpt, args.out_dir)
    package = assemble(Checkpoint(args.ckpt), args.out_dir, args.workdir, args.prefill_len)
    print_table(package)
    return cli.EXIT_CHECK_FAILED if args.require_complete and package.missing else cli.EXIT_OK


def run_check() -> int:
    """`--check`, with nothing but the standard library: whatever lies beside a copied script is not imported."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a board's terminal may know ASCII alone
        stream.reconfigure(errors="backslashreplace")
    try:
        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    if any(argument.split("=")[0] == "--check" for argument in sys.argv):
        sys.exit(run_check())
    try:
        from qwen_vl_axera import cli
    except ImportError:  # copied to the board alone
        sys.exit(main())
    sys.exit(cli.run(main))
