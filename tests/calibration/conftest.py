"""Videos and pictures to calibrate with."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.frames.test_media import make_video


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("calibration")
    make_video(directory / "a.mp4", 40)
    make_video(directory / "b.mp4", 31)
    random = np.random.default_rng(3)
    for name in ("x.png", "y.jpg"):
        Image.fromarray(random.integers(0, 256, (120, 90, 3), np.uint8)).save(directory / name)
    return directory
