"""Whether an environment has what requirements files list, by name: a question of milliseconds.

    python qwen_vl_axera/chain/requirements.py requirements.txt...

Exit code 0 when every distribution is installed, 1 with the missing names otherwise. Standard library only: it
runs before anything is installed.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def missing(files: list[Path]) -> list[str]:
    """The distributions named in requirements files that are not installed."""
    names = [
        match.group()
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if (match := re.match(r"[A-Za-z0-9][\w.-]*", line.strip()))
    ]
    return [name for name in names if not installed(name)]


def installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    absent = missing([Path(file) for file in sys.argv[1:]])
    if absent:
        print(f"not installed: {', '.join(absent)}", file=sys.stderr)
    sys.exit(bool(absent))
