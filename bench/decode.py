"""What get_calib.py can't be faster than: decoding the frames that its manifest names, and nothing else.

    python bench/decode.py VIDEO MANIFEST

Prints: JSON: seconds from opening the file to the last frame, how many frames, and their height and width.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> int:
    video, manifest = sys.argv[1:]

    import decord

    samples = json.loads(Path(manifest).read_text())["samples"]
    indices = sorted({index for sample in samples for index in sample["frames"]})
    start = time.monotonic()
    reader = decord.VideoReader(os.path.abspath(video), ctx=decord.cpu(0))
    for index in indices:
        frame = reader[index].asnumpy()
    seconds = time.monotonic() - start
    print(json.dumps({"seconds": seconds, "frames": len(indices), "shape": frame.shape[:2]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
