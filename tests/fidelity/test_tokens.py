"""fidelity_tokens.npz: of the same run, graph and clip as fidelity.json, or not read."""

import io
import zipfile

import numpy as np
import pytest

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.fidelity.metrics import compare, token_cosine_distances
from qwen_vl_axera.fidelity.record import THRESHOLDS, Fidelity, Graph, Step
from qwen_vl_axera.fidelity.tokens import read_token_errors, token_errors_path, write_token_errors
from qwen_vl_axera.made_from import made_from

SHAPE = (2, 3, 4)
GRAPH = "a_vision.onnx"


@pytest.fixture
def place(tmp_path):
    """A directory in which a gate has run, its graph's entry in fidelity.json, and the distances of its tokens."""
    random = np.random.default_rng(0)
    reference = random.standard_normal((2, 12, 64)).astype(np.float32)
    tokens = reference + 1e-6 * random.standard_normal(reference.shape).astype(np.float32)
    distances = token_cosine_distances(reference, tokens).reshape(SHAPE)
    errors = {f"{GRAPH}/cosine_distance": distances, f"{GRAPH}/error_ratio": np.full(SHAPE, np.nan)}
    write_token_errors(tmp_path / "fidelity.json", errors)
    steps = [Step(**compare(*pair), passed=True) for pair in zip(reference, tokens, strict=True)]
    return tmp_path, Graph(GRAPH, True, steps, None, []), distances


def fidelity(workdir):
    """The record of a run that wrote what lies there now."""
    return Fidelity(True, THRESHOLDS, [], [], made_from([workdir / "fidelity_tokens.npz"], workdir))


def read(place, record=None):
    return read_token_errors(place[0] / "fidelity_tokens.npz", place[1], record or fidelity(place[0]), SHAPE)


def test_they_are_read_as_they_were_written(place):
    found = read(place)
    assert (found.cosine_distance == place[2]).all() and np.isnan(found.error_ratio).all()
    assert token_errors_path(place[0] / "fidelity.json") == place[0] / "fidelity_tokens.npz"
    assert token_errors_path(place[0] / "other.json") == place[0] / "other_tokens.npz"


def rewritten(workdir, change):
    """The file with its arrays changed."""
    path = workdir / "fidelity_tokens.npz"
    with np.load(path) as arrays:
        arrays = dict(arrays)
    change(arrays)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (f"{GRAPH}/cosine_distance", np.full(SHAPE, 1e-12), "another run"),
        (f"{GRAPH}/cosine_distance", np.full(SHAPE, -1e-12), "below 0"),
        (f"{GRAPH}/error_ratio", np.full(SHAPE, -1.0), "below 0"),
        (f"{GRAPH}/error_ratio", np.ones((2, 4, 3)), "not of the captured clip"),
        (f"{GRAPH}/error_ratio", np.ones(SHAPE, np.float32), "not of the captured clip"),
        (f"{GRAPH}/error_ratio", np.array([{}], object), "not of the captured clip"),
    ],
)
def test_arrays_of_something_else_are_refused(place, name, value, words):
    rewritten(place[0], lambda arrays: arrays.update({name: value}))
    with pytest.raises(InputError, match=r"test_onnx_video_by_sec\.py again") as refused:
        read(place)
    assert words in str(refused.value)


def test_errors_of_another_run_are_refused(place):
    record = fidelity(place[0])
    rewritten(place[0], lambda arrays: arrays.update({f"{GRAPH}/cosine_distance": np.zeros(SHAPE)}))
    with pytest.raises(InputError, match=r"is of another run \(fidelity_tokens\.npz has changed\)"):
        read(place, record)
    with pytest.raises(InputError, match="does not say what it was made from"):
        read(place, Fidelity(True, THRESHOLDS, [], [], {"pixels.npy": 64 * "0"}))


def test_damage_is_named(place):
    path = place[0] / "fidelity_tokens.npz"
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:200], whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"test_onnx_video_by_sec\.py again"):
            read(place)
    rewritten_without = io.BytesIO()
    with zipfile.ZipFile(rewritten_without, "w") as archive:
        archive.writestr("other.npy", b"")
    path.write_bytes(rewritten_without.getvalue())
    with pytest.raises(InputError, match="no item named"):
        read(place)
    record = fidelity(place[0])
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        read(place, record)


def test_a_header_that_promises_more_than_there_is_takes_no_memory(place):
    """An array of a petabyte by its header: refused by its shape, before anything is allocated."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 47,)})
    path = place[0] / "fidelity_tokens.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[f"{GRAPH}/error_ratio.npy"] = header.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match="not of the captured clip"):
        read(place)
