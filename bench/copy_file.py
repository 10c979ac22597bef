"""The floor for what writes a file: reads one, writes it beside and waits until it is on the disk.

    python bench/copy_file.py SOURCE COPY

The copy is removed again.
"""

import os
import shutil
import sys

PIECE = 8 << 20  # bytes


def main() -> int:
    source, target = sys.argv[1:]
    with open(source, "rb") as reader, open(target, "wb") as writer:
        shutil.copyfileobj(reader, writer, PIECE)
        writer.flush()
        os.fsync(writer.fileno())
    os.unlink(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
