"""extract_embedding.py, run as a user would; torch's conversions are the oracle."""

import json
import struct
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import extract_embedding as script
from qwen_vl_axera.checkpoint.embedding import PIECE, extract_embedding, to_bfloat16
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import EMBEDDING, EMBEDDING_FILES
from tests.conftest import run_main
from tests.tiny import make_tiny

run = partial(run_main, script.main)

ROWS, COLUMNS = 512, 48


@pytest.fixture
def make(tmp_path):
    """Makes a checkpoint whose embeddings are replaced."""

    def replaced(values: torch.Tensor, name: str = EMBEDDING, directory: str = "tiny") -> Checkpoint:
        path = make_tiny(tmp_path / directory)
        (shard,) = path.glob("*.safetensors")
        tensors = load_file(shard)
        del tensors[EMBEDDING]
        tensors[name] = values
        (path / "model.safetensors.index.json").unlink()
        save_file(tensors, shard)
        return path

    return replaced


def test_bfloat16_is_copied_bit_for_bit(tiny_dir, tmp_path, capsys):
    (shard,) = tiny_dir.glob("*.safetensors")
    expected = load_file(shard)[EMBEDDING]
    out = tmp_path / "out 出"
    code, shown, err = run(capsys, tiny_dir, out)
    assert code == 0, err
    assert f"{ROWS} x {COLUMNS}" in shown
    assert [path.name for path in out.iterdir()] == ["model.embed_tokens.weight.bfloat16.bin"]
    data = (out / EMBEDDING_FILES["bfloat16"]).read_bytes()
    assert len(data) == 2 * ROWS * COLUMNS
    assert data == expected.view(torch.int16).numpy().astype("<i2").tobytes()


def test_float32_and_npy_hold_the_same_values(tiny_dir, tmp_path, capsys):
    (shard,) = tiny_dir.glob("*.safetensors")
    expected = load_file(shard)[EMBEDDING].float().numpy()
    for format in ("float32", "npy"):
        assert run(capsys, tiny_dir, tmp_path, "--format", format)[0] == 0
    raw = np.fromfile(tmp_path / "model.embed_tokens.weight.float32.bin", "<f4").reshape(ROWS, COLUMNS)
    array = np.load(tmp_path / "model.embed_tokens.weight.npy", allow_pickle=False)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(raw, expected)
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_wider_types_are_rounded_to_nearest_even(make, tmp_path, capsys, dtype):
    values = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3)).to(dtype)
    # Exact halves between two bfloat16 values, on both sides of an even one; and subnormal numbers.
    values[0, :4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 6e-8])
    code, shown, err = run(capsys, make(values), tmp_path / "out")
    assert code == 0, err
    assert "nearest even" in shown
    written = np.fromfile(tmp_path / "out" / EMBEDDING_FILES["bfloat16"], "<i2").reshape(ROWS, COLUMNS)
    np.testing.assert_array_equal(written, values.bfloat16().view(torch.int16).numpy())
    extract_embedding(Checkpoint(tmp_path / "tiny"), tmp_path / "out", "float32")
    exact = np.fromfile(tmp_path / "out" / EMBEDDING_FILES["float32"], "<f4").reshape(ROWS, COLUMNS)
    np.testing.assert_array_equal(exact, values.float().numpy())


def test_rounding_equals_torch_over_all_exponents():
    bits = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint32)
    # Ties, the neighbours of ties, the largest values and infinities, each with either sign.
    special = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7F7FFF, 0x7F7F8000, 0x7F800000, 0, 1])
    bits = np.concatenate([bits, special, special | 0x80000000]).astype("<u4")
    values = bits.view("<f4")
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(to_bfloat16(values)[finite], expected[finite])
    assert all((half & 0x7FFF) > 0x7F80 for half in to_bfloat16(values)[~finite])


def test_larger_than_one_piece(tmp_path):
    directory = make_tiny(tmp_path / "large", text={"vocab_size": 6007})
    assert 2 * 6007 * COLUMNS > 2 * PIECE
    (shard,) = directory.glob("*.safetensors")
    path = extract_embedding(Checkpoint(directory), tmp_path)
    assert path.read_bytes() == load_file(shard)[EMBEDDING].view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.language_model.embed_tokens.weight",
        "language_model.model.embed_tokens.weight",
        "embed_tokens.weight",
    ],
)
def test_every_known_name(make, tmp_path, name):
    values = torch.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS).bfloat16()
    path = extract_embedding(Checkpoint(make(values, name)), tmp_path)
    assert path.read_bytes() == values.view(torch.int16).numpy().tobytes()


def test_a_missing_key_lists_the_closest(make, tmp_path, capsys):
    values = torch.zeros(ROWS, COLUMNS, dtype=torch.bfloat16)
    result = run(capsys, make(values, "model.embeds_token.weight"), tmp_path / "out")
    assert_refused(result, tmp_path / "out", "model.embeds_token.weight")


def test_another_shape_than_config(make, tmp_path, capsys):
    values = torch.zeros(ROWS - 1, COLUMNS, dtype=torch.bfloat16)
    result = run(capsys, make(values), tmp_path / "out")
    assert_refused(result, tmp_path / "out", "[511, 48]", "[512, 48]")


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        (torch.bfloat16, float("nan")),
        (torch.bfloat16, float("-inf")),
        (torch.float16, float("inf")),
        (torch.float32, float("nan")),
        (torch.float32, 3.4e38),  # finite, but beyond bfloat16
    ],
)
def test_values_that_are_not_finite(make, tmp_path, capsys, dtype, bad):
    values = torch.zeros(ROWS, COLUMNS, dtype=dtype)
    values[400, 7] = bad
    result = run(capsys, make(values), tmp_path / "out")
    assert_refused(result, tmp_path / "out", "NaN")


def test_integers_are_refused(make, tmp_path, capsys):
    result = run(capsys, make(torch.zeros(ROWS, COLUMNS, dtype=torch.int8)), tmp_path / "out")
    assert_refused(result, tmp_path / "out", "I8")


def test_a_truncated_shard(tmp_path, capsys):
    directory = make_tiny(tmp_path / "tiny")
    (shard,) = directory.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1000])
    result = run(capsys, directory, tmp_path / "out")
    assert_refused(result, tmp_path / "out", "truncated")


def test_a_file_in_the_way_and_an_old_result_that_stays(make, tmp_path, capsys):
    values = torch.ones(ROWS, COLUMNS, dtype=torch.float32)
    values[0, 0] = float("nan")
    out = tmp_path / "out"
    out.mkdir()
    (out / EMBEDDING_FILES["bfloat16"]).write_bytes(b"old")
    directory = make(values)
    code, _, err = run(capsys, directory, out)
    assert code == 2
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [(EMBEDDING_FILES["bfloat16"], b"old")]
    code, _, err = run(capsys, directory, directory / "config.json")
    assert code == 2
    assert "within the checkpoint" in err


def test_an_implausible_header(tmp_path, capsys):
    directory = make_tiny(tmp_path / "tiny")
    (shard,) = directory.glob("*.safetensors")
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[EMBEDDING]["data_offsets"][1] -= 2
    text = json.dumps(header).encode().ljust(length)
    shard.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    assert_refused(run(capsys, directory, tmp_path / "out"), tmp_path / "out", EMBEDDING)


def assert_refused(result, out, *words: str) -> None:
    """Exit code 2, one line that says why, and nothing written."""
    code, _, err = result
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    for word in words:
        assert word in err
    assert not out.exists() or not any(out.iterdir())
