"""The external data file: where each weight lies and how it is written."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from onnx import TensorProto

from qwen_vl_axera import progress
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write

ALIGNMENT = 4096  # bytes; ONNX Runtime maps external tensors that begin on a page boundary


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

    def write(self, directory: Path, weights: Iterable[tuple[str, np.ndarray]]) -> Path:
        """Writes the weights one at a time.

        Args:
            directory: where the file `location` goes.
            weights: name and float32 values, in the order of the shapes given before.

        Raises:
            InputError: a weight comes in another size or order than announced.
        """
        path = Path(directory) / self.location
        with progress.stage("weights", self.size) as stage, atomic_write(path) as file:
            announced = iter(self.places.items())
            for name, values in weights:
                expected, (start, length) = next(announced, (None, (0, 0)))
                if name != expected or values.nbytes != length:
                    raise InputError(f"{name}: {values.nbytes} bytes, the graph expects {expected}: {length} bytes")
                file.seek(start)
                file.write(values.data)
                stage.advance(length)
            if left := next(announced, None):
                raise InputError(f"the checkpoint gave no {left[0]}")
        return path
