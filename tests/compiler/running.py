"""The compiler's commands as a user runs them, and the stand-in for the compiler."""

import os
import subprocess
import sys

from qwen_vl_axera.compiler.tool import Tool
from tests.conftest import ROOT

STAND_IN = ROOT / "tests" / "stand_in" / "pulsar2"

CONFIG = ROOT / "config_video.json"

MISSING = Tool("missing", "no pulsar2")

HERE = Tool("command", str(STAND_IN))

IMAGE = Tool("docker", "pulsar2:7.0")

HOSTILE = ["a name", 'it\'s "so"', "-dash", "描述视频", "$(touch x);`id`&", "a,b:c=d", "[x]*?"]


def cli(*argv, **env):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PULSAR2": str(STAND_IN)} | env
    command = [sys.executable, "-m", "qwen_vl_axera.compiler", *map(str, argv)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
