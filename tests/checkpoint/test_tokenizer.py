"""Which tokenizer.json is run: Qwen2's, and nothing that computes otherwise."""

import copy
import json
from pathlib import Path

import pytest

from qwen_vl_axera.checkpoint.tokenizer import check_tokenizer
from qwen_vl_axera.errors import InputError
from tests.conftest import ROOT

GOOD = json.loads((ROOT / "assets" / "demo_model" / "tokenizer.json").read_text())


def test_qwens_own_passes():
    check_tokenizer(Path("t"), GOOD)
    check_tokenizer(Path("t"), GOOD | {"normalizer": None, "post_processor": None, "decoder": None})


def test_the_pattern_is_transformers_own():
    from transformers.models.qwen2 import tokenization_qwen2

    from qwen_vl_axera.checkpoint.tokenizer import WORDS

    assert getattr(tokenization_qwen2, "PRETOKENIZE_REGEX", WORDS) == WORDS


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", None),
        ("model", {"type": "Unigram"}),
        ("normalizer", {"type": "Replace"}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
        ("normalizer", "NFC"),
        ("decoder", {"type": "Replace"}),
        ("post_processor", {"type": "TemplateProcessing"}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"String": "x"}}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "."}}]}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Digits"}]}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": ["x"]}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": "x"}),
        ("pre_tokenizer", [1]),
    ],
)
def test_anything_else_is_refused(part, value):
    raw = copy.deepcopy(GOOD) | {part: value}
    with pytest.raises(InputError, match=f"^t: its {part}"):
        check_tokenizer(Path("t"), raw)


@pytest.mark.parametrize("raw", [None, [], "x", 1])
def test_no_object_is_refused(raw):
    with pytest.raises(InputError, match=r"^t: expected an object"):
        check_tokenizer(Path("t"), raw)
