"""The same commands, the same numbers, under each transformers that is promised.

    python tests/compat/run.py [VERSION...] [--readme FILE...]

For each version, an overlay directory that holds nothing but that transformers and the two packages that it
pins; everything else is this interpreter's. Under it run the tests that touch transformers and the documented
commands on the demo model (same_numbers.py), whose results must be those of the newest version. Under the newest
only the commands run here: tests/run.sh runs all of its tests.

Reads:  COMPAT_DIR (default: ~/.cache/qwen-vl-axera/compat), where overlays are kept by what they were made from.
Writes: overlays and results there, table.md among them; with --readme, the table between the marks
        <!-- versions:begin --> and <!-- versions:end -->. Exit code 1 when a test or a comparison fails.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from tests.compat.same_numbers import compare, read_numbers  # noqa: E402 - from the checkout, wherever it is called

NEWEST = "newest"  # what requirements.txt resolved to: no overlay
OVERLAYS = {
    "4.49.0": ("transformers==4.49.0", "tokenizers>=0.21,<0.22", "huggingface_hub>=0.26,<1"),
    "4.57.6": ("transformers==4.57.6", "tokenizers>=0.22,<=0.23.0", "huggingface_hub>=0.34,<1"),
}
# What touches transformers. Sizes: windows ragged on both axes, and the documented 308x308.
TESTS = (
    "tests/towers",
    "tests/checkpoint/test_config.py::test_transformers_reads_the_same",
    "tests/checkpoint/test_tensors.py::test_transformers_own_saving_is_read",
    "tests/language/test_mrope.py",
    "tests/language/test_chat.py",
    "tests/oracle/test_run_video_by_sec.py",
    "tests/oracle/test_run.py",
    "tests/fidelity/test_gate.py",
    "tests/fidelity/test_blocks.py",
    "tests/graph/test_graph.py::test_every_graph_is_transformers_tower",
    "tests/frames/test_real_media.py::test_clips_through_the_whole_chain",
    "tests/frames/test_real_media.py::test_the_documented_frame_directory",
    "tests/demo/test_evaluation.py::test_the_demo_model_describes_the_demo_clip",
)
LEFT_OUT = (
    "not (test_bad or bad_input or default_workdir"
    " or every_graph and not (308x308 or 140x252) or clips and not native0-308x308)"
)


def cache_directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("COMPAT_DIR") or Path(cache) / "qwen-vl-axera" / "compat")


def overlay(cache: Path, name: str) -> Path | None:
    """The directory with a version of transformers; made once for what it depends on. None: no overlay."""
    if name == NEWEST:
        return None
    packages = OVERLAYS[name]
    key = hashlib.sha256("\n".join((*packages, sys.version)).encode())
    path = cache / f"transformers-{name}-py{platform.python_version()}-{key.hexdigest()[:12]}"
    if not path.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=cache, prefix=".making-"))
        try:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*command, "--target", making, *packages], check=True)
            making.rename(path)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return path


def environment(path: Path | None) -> dict[str, str]:
    """One thread per process: the tests' matrices are small."""
    search = [str(path)] if path else []
    search += [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return os.environ | {"PYTHONPATH": os.pathsep.join(search), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def check(cache: Path, name: str) -> tuple[Path, bool, str]:
    """Runs tests and commands under one version.

    Returns:
        The directory with the numbers, whether everything ended well, and what to say of the tests.
    """
    start = time.monotonic()
    env = environment(overlay(cache, name))
    results = cache / f"results-{name}"
    shutil.rmtree(results, ignore_errors=True)
    processes = [captured(HERE / "same_numbers.py", results, env=env)]
    tests = "all of tests/"
    if name != NEWEST:
        processes.append(captured("-m", "pytest", "-p", "no:cacheprovider", "-k", LEFT_OUT, *TESTS, env=env))
        tests = (processes[-1].stdout.strip().splitlines() or ["pytest gave no output"])[-1]
    for process in processes:
        if process.returncode:
            print(process.stdout)
    print(f"transformers {name}: {tests}; everything {time.monotonic() - start:.0f} s", flush=True)
    return results, not any(process.returncode for process in processes), tests


def captured(*command: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs Python in the checkout; its output in one piece, since versions run side by side."""
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def table(rows: dict[Path, str], newest: Path) -> tuple[str, bool]:
    """Markdown: one row per version, compared with the newest; and whether every comparison holds."""
    lines, passed = [], True
    for directory, tests in rows.items():
        numbers = read_numbers(directory)
        results = compare(directory, newest)
        passed &= all(ok for ok, _ in results.values())
        if not lines:
            lines += [["transformers", "tests", *results], ["---"] * (len(results) + 2)]
        lines.append([numbers["versions"]["transformers"], tests, *(shown for _, shown in results.values())])
    versions = read_numbers(newest)["versions"]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\nPython {platform.python_version()}, torch {versions['torch']}, against the last row.\n", passed


def write_between_marks(path: Path, text: str) -> None:
    begin, end = "<!-- versions:begin -->", "<!-- versions:end -->"
    content = path.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1:
        raise SystemExit(f"{path}: expected the marks {begin} and {end} once each")
    head, rest = content.split(begin)
    path.write_text(f"{head}{begin}\n{text}{end}{rest.split(end)[1]}", encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"default: {' '.join(OVERLAYS)} {NEWEST}")
    parser.add_argument("--readme", nargs="+", type=Path, default=[], metavar="FILE")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    names = [name for name in args.versions or OVERLAYS if name != NEWEST]
    if unknown := set(names) - set(OVERLAYS):
        raise SystemExit(f"{', '.join(sorted(unknown))}: expected one of {', '.join(OVERLAYS)} or {NEWEST}")
    cache = cache_directory()
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1))) as pool:
        checked = list(pool.map(lambda name: check(cache, name), [*names, NEWEST]))
    passed = all(ok for _, ok, _ in checked)
    counts = [[part for part in last.split(" in ")[0].split(", ") if "deselected" not in part] for *_, last in checked]
    rows = {results: ", ".join(parts) for (results, *_), parts in zip(checked, counts, strict=True)}
    newest = checked[-1][0]
    if not all((results / "numbers.json").is_file() for results in rows):
        return 1
    text, same = table(rows, newest)
    (cache / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    if passed and same:
        for path in args.readme:
            write_between_marks(path, text)
    else:
        print("FAILED: the versions do not give the same", file=sys.stderr)
    return 0 if passed and same else 1


if __name__ == "__main__":
    sys.exit(main())
