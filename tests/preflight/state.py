"""A checkpoint and a work directory as the steps before the compiler leave them, to be broken by tests."""

import io
import json
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from preprocess import frames_to_patches, to_graph_input
from qwen_vl_axera.preflight.checks import Check
from qwen_vl_axera.preflight.plan import Plan, Preflight
from tests.conftest import ROOT

SIZE = 112, 84  # 8x6 patches

SAMPLES = 16

SHARD = "model-00001-of-00001.safetensors"

STAND_IN = ROOT / "tests" / "stand_in" / "pulsar2"


@dataclass
class State:
    """A checkpoint and a work directory, as the steps before the compiler leave them."""

    checkpoint: Path
    workdir: Path

    @property
    def graph(self) -> Path:
        return self.workdir / "tiny_vision.onnx"

    @property
    def archive(self) -> Path:
        return self.workdir / "calib" / "hidden_states.tar"

    def checks(self, **plan) -> list[Check]:
        return list(Preflight(Plan(self.checkpoint, self.workdir, tool=str(STAND_IN), **plan)).run())

    def bad(self, **plan) -> dict[str, str]:
        """Name -> detail of every check that is not ok.

        Memory and disk are the machine's own; that the gate has not been run is said in each of these states.
        """
        machine = ("memory", "disk")
        found = [check for check in self.checks(**plan) if check.status != "ok" and check.name not in machine]
        return {check.name: check.detail for check in found if (check.name, check.status) != ("fidelity", "warning")}


def samples(count=SAMPLES, format="numpy"):
    """Different pictures as samples: uint8 patches (S, 392, 3), or what the graph takes."""
    random = np.random.default_rng(3)
    for _ in range(count):
        frame = np.kron(random.integers(0, 256, (4, 3, 3), dtype=np.uint8), np.ones((28, 28, 1), np.uint8))
        (patches,) = frames_to_patches([frame], SIZE)
        yield to_graph_input(patches) if format == "numpy" else patches


def as_npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def encoded(sample):
    if sample.ndim == 4:
        return as_npy(sample)
    buffer = io.BytesIO()
    Image.fromarray(sample).save(buffer, "PNG")
    return buffer.getvalue()


def pack(archive, members):
    """Writes a tar of name -> bytes, or of TarInfo."""
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = data
                tar.addfile(info)


def numbered(items, suffix="npy"):
    return {f"{number:03d}.{suffix}": encoded(item) for number, item in enumerate(items)}


def rewrite_header(path, change):
    """Applies `change` to a safetensors header; the data stays."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def truncate(path, size=-10):
    path.write_bytes(path.read_bytes()[:size])
