"""The board's tokenizer files; `tokenizers` is the oracle, through a reader that knows only the written text."""

import base64
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from demo.tokenizer import build_tokenizer
from qwen_vl_axera.board.tokenizer import (
    BYTES,
    GREEDY_FILE,
    MERGES_FILE,
    check_text,
    greedy,
    read_vocabulary,
    with_merges,
    write_board_tokenizers,
)
from qwen_vl_axera.errors import InputError

REAL = os.environ.get("QWEN_TOKENIZER_JSON")
# Of the files made from Qwen2.5's own tokenizer.json (151,665 tokens, 151,387 merges), as the runtime's loader took.
REAL_MERGES_SIZE, REAL_GREEDY_SIZE = 3_193_479, 1_611_462
TEXTS = (
    "Describe this video.",
    "描述这个视频.",
    "A red circle moves left, then 12345 snake_case_names — it's über!  \n\n  тест 😀\t\r\n",
    "You're the RIGHT one; we'll see'd",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(directory)
    return directory / "tokenizer.json"


@pytest.fixture
def edit(small, tmp_path):
    """Writes tokenizer.json changed by a function."""

    def edited(change) -> Path:
        content = json.loads(small.read_text(encoding="utf-8"))
        change(content)
        path = tmp_path / "edited.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return edited


class Reader:
    """Encodes text with what the two files say, the pre-tokenizer excepted."""

    def __init__(self, path: Path, oracle: Tokenizer):
        lines = path.read_bytes().decode("utf-8").split("\n")
        assert lines.pop() == ""
        self.oracle = oracle
        self.magic, self.kind = lines[0].split()
        added, stop, prefix = map(int, lines[1].split())
        ids = [int(word) for word in lines[2].split()]
        assert len(ids) == added + stop + prefix
        self.added, self.stop = ids[:added], ids[added:]
        counts = [int(word) for word in lines[3].split()]
        self.tokens, self.merges = lines[4 : 4 + counts[0]], lines[4 + counts[0] :]
        assert len(self.tokens) == counts[0]
        assert len(self.merges) == (counts[1] if self.kind == "3" else 0)
        self.rule = counts[2] if self.kind == "3" else None

    def encode(self, text: str) -> list[int]:
        ids = {token: number for number, token in enumerate(self.tokens)}
        ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(self.merges)}
        result = []
        for word, _ in self.oracle.pre_tokenizer.pre_tokenize_str(text):
            parts = list(word)
            while len(parts) > 1:
                best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
                if best not in ranks:
                    break
                at = next(i for i in range(len(parts)) if tuple(parts[i : i + 2]) == best)
                parts[at : at + 2] = ["".join(best)]
            result += [ids[part] for part in parts]
        return result


def check_against_oracle(source: Path, directory: Path) -> None:
    oracle = Tokenizer.from_file(str(source))
    merges, longest = Reader(directory / MERGES_FILE, oracle), Reader(directory / GREEDY_FILE, oracle)
    assert (merges.magic, merges.kind, merges.rule) == ("430", "3", 2)
    assert (longest.magic, longest.kind) == ("430", "1")
    assert len(merges.tokens) == len(longest.tokens) == oracle.get_vocab_size()
    assert merges.tokens == [oracle.id_to_token(number) for number in range(oracle.get_vocab_size())]
    assert merges.added == longest.added == sorted(oracle.get_added_tokens_decoder())
    assert merges.stop == longest.stop == [oracle.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>")]
    for text in TEXTS:
        assert merges.encode(text) == oracle.encode(text).ids
    # Decoding bytes by the greedy file gives the text back, whatever the ids.
    for text in TEXTS:
        ids = oracle.encode(text).ids
        assert b"".join(base64.b64decode(longest.tokens[number]) for number in ids).decode() == text
    for number in longest.added:
        assert base64.b64decode(longest.tokens[number]).decode() == oracle.id_to_token(number)


def test_small_tokenizer(small, tmp_path):
    paths = write_board_tokenizers(small, tmp_path, 512)
    assert [path.name for path in paths] == ["qwen2.5_tokenizer.txt", "qwen2.5_tokenizer_greedy.txt"]
    check_against_oracle(small, tmp_path)
    for path in paths:
        data = path.read_bytes()
        assert b"\r" not in data and not data.startswith(b"\xef\xbb\xbf") and data.endswith(b"\n")


@pytest.mark.skipif(not REAL, reason="QWEN_TOKENIZER_JSON names no file")
def test_real_tokenizer(tmp_path):
    merges, longest = write_board_tokenizers(Path(REAL), tmp_path, 151936)
    assert (merges.stat().st_size, longest.stat().st_size) == (REAL_MERGES_SIZE, REAL_GREEDY_SIZE)
    reader = Reader(merges, Tokenizer.from_file(REAL))
    assert (reader.added, reader.stop) == (list(range(151643, 151665)), [151643, 151645])
    check_against_oracle(Path(REAL), tmp_path)


def test_merges_as_pairs_or_as_text_are_the_same(small, edit):
    def other_spelling(content):
        merges = content["model"]["merges"]
        content["model"]["merges"] = [m.split(" ") if isinstance(m, str) else " ".join(m) for m in merges]

    assert read_vocabulary(edit(other_spelling)) == read_vocabulary(small)


def test_byte_alphabet_is_the_tokenizers_own():
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(BYTES) == set(ByteLevel.alphabet())
    assert sorted(BYTES.values()) == list(range(256))


def test_rule_for_words_with_marks(edit):
    def marks(content):
        split = content["pre_tokenizer"]["pretokenizers"][0]
        split["pattern"]["Regex"] = split["pattern"]["Regex"].replace(r"\p{L}+", r"[\p{L}\p{M}]+")

    assert read_vocabulary(edit(marks)).rule == 1


def drop_added(content):
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != "<|im_end|>"]


def gap(content):
    content["added_tokens"][-1]["id"] += 1


def repeated(content):
    content["added_tokens"][-1]["id"] = 0


def line_feed(content):
    content["added_tokens"][-1]["content"] = "two\nlines"


def plain_text(content):
    token = next(iter(content["model"]["vocab"]))
    content["model"]["vocab"]["a b"] = content["model"]["vocab"].pop(token)


def lost_merge(content):
    content["model"]["merges"].append(["Ġ", "never"])


def text_id(content):
    content["added_tokens"][-1]["id"] = "7"


def other_rule(content):
    content["pre_tokenizer"] = {"type": "Whitespace"}


def unigram(content):
    content["model"]["type"] = "Unigram"


def no_model(content):
    del content["model"]


def nested_vocab(content):
    content["model"]["vocab"] = [1, 2]


CHANGES = (
    drop_added, gap, repeated, line_feed, plain_text, lost_merge, text_id, other_rule, unigram, no_model, nested_vocab,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_unusable_tokenizers(edit, tmp_path, change):
    with pytest.raises(InputError, match=r"edited\.json"):
        write_board_tokenizers(edit(change), tmp_path, 512)
    assert not list(tmp_path.glob("qwen*"))


def test_more_tokens_than_rows(small, tmp_path):
    with pytest.raises(InputError, match="another model"):
        write_board_tokenizers(small, tmp_path, 300)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [with_merges, greedy])
def test_damaged_text_is_noticed(small, write):
    vocabulary = read_vocabulary(small)
    text = write(vocabulary)
    check_text(text, vocabulary)
    lines = text.split("\n")
    damaged = [
        text[:-1],
        text.replace("\n", "\r\n"),
        "\n".join(lines[:-2]) + "\n",
        "\n".join([*lines[:40], *lines[41:]]),
        "\n".join([*lines[:40], lines[41], lines[40], *lines[42:]]),
        text.replace("430", "431", 1),
        text.replace("22 2 0", "21 3 0", 1),
        text + "x\n",
        "\n".join([*lines[:-3], lines[-2], lines[-3], ""]),
    ]
    for wrong in damaged:
        with pytest.raises(ValueError):
            check_text(wrong, vocabulary)
