"""What get_calib.py can't be faster than: decoding the frames that its manifest names, and nothing else.

    python bench/decode.py VIDEO MANIFEST

Prints: JSON: seconds from opening the file to the last frame, how many frames, and their height and width.
"""

import json
import sys
import time
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> int:
    video, manifest = sys.argv[1:]

    from qwen_vl_axera.frames.video import VideoFile

    samples = json.loads(Path(manifest).read_text())["samples"]
    indices = sorted({index for sample in samples for index in sample["frames"]})
    start = time.monotonic()
    frame = deque(VideoFile(Path(video)).read(indices), maxlen=1).pop()
    seconds = time.monotonic() - start
    print(json.dumps({"seconds": seconds, "frames": len(indices), "shape": frame.shape[:2]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
