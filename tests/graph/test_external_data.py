"""The data file, read back by the onnx package; and weights that are not the announced ones."""

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.graph.external_data import ALIGNMENT, DataFile

SHAPES = {"a": (3, 5), "b": (2000,), "c": (1,)}
WEIGHTS = {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_onnx_reads_what_was_written(tmp_path):
    data = DataFile("x.data", SHAPES)
    path = data.write(tmp_path, WEIGHTS.items())
    assert path == tmp_path / "x.data" and path.stat().st_size == data.size
    assert all(start % ALIGNMENT == 0 for start, _ in data.places.values())
    model = helper.make_model(
        helper.make_graph([], "g", [], [], [data.tensor(name, shape) for name, shape in SHAPES.items()])
    )
    load_external_data_for_model(model, str(tmp_path))
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), WEIGHTS[tensor.name])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"b": WEIGHTS["b"], "a": WEIGHTS["a"], "c": WEIGHTS["c"]}, "b: 8000 bytes, the graph expects a: 60 bytes"),
        (WEIGHTS | {"b": WEIGHTS["b"][1:]}, "b: 7996 bytes, the graph expects b: 8000 bytes"),
        ({"a": WEIGHTS["a"], "b": WEIGHTS["b"]}, "the checkpoint gave no c"),
        (WEIGHTS | {"d": WEIGHTS["a"]}, "d: 60 bytes, the graph expects None"),
    ],
)
def test_other_weights_than_announced_are_refused_and_the_old_file_stays(tmp_path, weights, words):
    (tmp_path / "x.data").write_bytes(b"old")
    with pytest.raises(InputError, match=words):
        DataFile("x.data", SHAPES).write(tmp_path, weights.items())
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.data", b"old")]
