"""The checked-in build configurations, to be changed by tests."""

import copy
import json

from tests.conftest import ROOT

PIXELS, NORMALIZED = ROOT / "config_video.json", ROOT / "config_video_normalized.json"


def raw(path=PIXELS):
    return json.loads(path.read_text(encoding="utf-8"))


def changed(config, changes):
    """A copy with `{"quant.input_configs.0.field": value}` applied; the value `...` removes the field."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place = config
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else place[parent]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return config
