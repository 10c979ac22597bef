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
    path = data.write(tmp_path, WEIGHTS.items)
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
        DataFile("x.data", SHAPES).write(tmp_path, weights.items)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.data", b"old")]


@pytest.fixture
def written(tmp_path):
    """A data file, and whether writing these weights again replaces it."""
    path = DataFile("x.data", SHAPES).write(tmp_path, WEIGHTS.items)

    def replaced(weights=WEIGHTS) -> bool:
        before = path.lstat().st_ino
        DataFile("x.data", SHAPES).write(tmp_path, weights.items)
        for name, (start, length) in DataFile("x.data", SHAPES).places.items():
            assert path.read_bytes()[start : start + length] == weights[name].tobytes()
        return path.lstat().st_ino != before

    return path, replaced


def test_the_same_bytes_stay_where_they_are(written):
    _, replaced = written
    assert not replaced()


@pytest.mark.parametrize("name", SHAPES)
def test_one_other_value_is_written(written, name):
    _, replaced = written
    other = WEIGHTS[name].copy()
    other.reshape(-1)[-1] = np.nextafter(other.reshape(-1)[-1], np.float32(9))
    assert replaced(WEIGHTS | {name: other})


@pytest.mark.parametrize("damage", ["padding", "longer", "shorter", "link"])
def test_a_damaged_file_is_written_anew(written, damage):
    path, replaced = written
    data = bytearray(path.read_bytes())
    if damage == "padding":
        data[100] = 1  # between two weights
    elif damage == "longer":
        data += b"x"
    elif damage == "shorter":
        del data[-1:]
    if damage == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    else:
        path.write_bytes(data)
    assert replaced() and not path.is_symlink()
