"""The external data file: where each weight lies and how it is written."""

from collections.abc import Callable, Iterable
from itertools import zip_longest
from pathlib import Path
from typing import IO

import numpy as np
from onnx import TensorProto

from qwen_vl_axera import progress
from qwen_vl_axera.doors import open_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import READ_SIZE, atomic_write

ALIGNMENT = 4096  # bytes; ONNX Runtime maps external tensors that begin on a page boundary

Weights = Iterable[tuple[str, np.ndarray]]


class DataFile:
    """Where each weight lies in the external data file. Offsets follow from the shapes alone."""

    def __init__(self, location: str, shapes: dict[str, tuple[int, ...]]):
        self.location, self.shapes = location, shapes
        self.places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, shape in shapes.items():
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + 4 * int(np.prod(shape))
            self.places[name] = start, end - start
        self.size = end

    def tensor(self, name: str, shape: Iterable[int]) -> TensorProto:
        """A float32 initializer that refers to this file."""
        start, length = self.places[name]
        tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.location), ("offset", start), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def write(self, directory: Path, weights: Callable[[], Weights]) -> Path:
        """Writes the weights one at a time; a file that holds them already is left as it is, for other graphs' sake.

        Args:
            directory: where the file `location` goes.
            weights: gives name and float32 values, in the order of the shapes given before, whenever it is called.

        Raises:
            InputError: a weight comes in another size or order than announced.
        """
        path = Path(directory) / self.location
        if self.held_by(path, weights):
            return path
        with progress.stage("weights", self.size) as stage, atomic_write(path) as file:
            announced = iter(self.places.items())
            for name, values in weights():
                expected, (start, length) = next(announced, (None, (0, 0)))
                if name != expected or values.nbytes != length:
                    raise InputError(f"{name}: {values.nbytes} bytes, the graph expects {expected}: {length} bytes")
                file.seek(start)
                file.write(values.data)
                stage.advance(length)
            if left := next(announced, None):
                raise InputError(f"the checkpoint gave no {left[0]}")
        return path

    def held_by(self, path: Path, weights: Callable[[], Weights]) -> bool:
        """Whether a file is, byte by byte, what `write` would make; another model's ends the reading at once."""
        if path.is_symlink() or not path.is_file() or path.stat().st_size != self.size:
            return False
        with progress.stage("compare weights", self.size) as stage, open_file(path) as file:
            for place, weight in zip_longest(self.places.items(), weights()):
                if place is None or weight is None or place[0] != weight[0]:
                    return False
                start, length = place[1]
                if any(file.read(start - file.tell())) or not _next_are(file, weight[1]):
                    return False
                stage.advance(length)
        return True


def _next_are(file: IO[bytes], values: np.ndarray) -> bool:
    """Whether a file goes on with these values; read in pieces, so that they are in memory once."""
    expected = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    pieces = (expected[start : start + READ_SIZE] for start in range(0, len(expected), READ_SIZE))
    return all(np.array_equal(np.frombuffer(file.read(len(piece)), np.uint8), piece) for piece in pieces)
