"""The checked-in demo, and clips that no training has seen."""

from demo.clips import make_clip
from tests.conftest import ROOT

ASSETS = ROOT / "assets"
CLIPS = [make_clip("test", 5, number) for number in range(60)]
