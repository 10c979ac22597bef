"""The tokenizer file of the board's runtime: MNN-LLM's `tokenizer.txt`, from tokenizer.json alone.

UTF-8, LF, no byte order mark:

    430 KIND
    <special ids> <stop ids> <prefix ids>     how many of each
    id id id ...                              all of them, on one line
    KIND 3: V M RULE, then V tokens as tokenizer.json spells them (id = line), then M merges (rank = line)
    KIND 1: V, then V tokens as base64 of their bytes (id = line); matched greedily, for older runtimes

The runtime loads truncated and otherwise damaged files without a word, so what is written here is parsed again
and compared before it gets its name.
"""

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import atomic_write, read_json

MERGES_FILE, GREEDY_FILE = "qwen2.5_tokenizer.txt", "qwen2.5_tokenizer_greedy.txt"
MAGIC = "430"
GREEDY, MERGES = "1", "3"
STOP_TOKENS = ("<|endoftext|>", "<|im_end|>")
# The runtime knows pre-tokenizer rules by number. They differ in what makes a word.
WORD_RULES = ((r"[\p{L}\p{M}]+", 1), (r"\p{L}+|\p{N}|", 2))


@dataclass(frozen=True)
class Vocabulary:
    """What a byte-level BPE tokenizer consists of.

    Attributes:
        tokens: by id, in tokenizer.json's spelling: ordinary ones in GPT-2's byte alphabet, added ones plain.
        added: ids of the added tokens.
        stop: ids that end an answer.
        merges: pairs, best first.
        rule: the runtime's number for the pre-tokenizer.
    """

    tokens: tuple[str, ...]
    added: tuple[int, ...]
    stop: tuple[int, ...]
    merges: tuple[tuple[str, str], ...]
    rule: int


def write_board_tokenizers(tokenizer_json: Path, directory: Path, vocab_size: int) -> list[Path]:
    """Writes `qwen2.5_tokenizer.txt` and `qwen2.5_tokenizer_greedy.txt`.

    Args:
        tokenizer_json: of the checkpoint.
        directory: where they go; must exist.
        vocab_size: rows of the embeddings; at most so many tokens can be there.

    Raises:
        InputError: tokenizer.json is unusable, not of Qwen2.5's kind or of another model.
    """
    vocabulary = read_vocabulary(tokenizer_json)
    if len(vocabulary.tokens) > vocab_size:
        raise InputError(
            f"{tokenizer_json}: {len(vocabulary.tokens)} tokens, the model has {vocab_size} rows (vocab_size in "
            "config.json): the tokenizer is another model's"
        )
    paths = []
    for name, text in ((MERGES_FILE, with_merges(vocabulary)), (GREEDY_FILE, greedy(vocabulary))):
        check_text(text, vocabulary)
        with atomic_write(Path(directory) / name) as file:
            file.write(text.encode("utf-8"))
        paths.append(Path(directory) / name)
    return paths


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads a Hugging Face tokenizer.json.

    Raises:
        InputError: it is missing, malformed, no byte-level BPE, or one whose rules the runtime does not know.
    """
    raw = read_json(path)
    try:
        model = raw["model"]
        if model["type"] != "BPE" or model.get("byte_fallback"):
            raise InputError(f"{path}: expected byte-level BPE, found {model['type']}")
        ids: dict[str, int] = dict(model["vocab"])
        added = {entry["content"]: entry["id"] for entry in raw["added_tokens"]}
        merges = tuple(
            tuple(pair.split(" ") if isinstance(pair, str) else (str(part) for part in pair))
            for pair in model["merges"]
        )
        rule = _rule(path, raw["pre_tokenizer"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a complete tokenizer.json ({type(error).__name__}: {error})") from None
    for token, number in added.items():
        if ids.get(token, number) != number:
            raise InputError(f"{path}: {token!r} has the ids {ids[token]} and {number}")
    _check_tokens(path, ids, added, merges)
    ids |= added
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise InputError(f"{path}: token ids have gaps or repeat; the runtime takes line numbers for ids")
    if absent := [token for token in STOP_TOKENS if token not in added]:
        raise InputError(f"{path}: no added token {absent[0]}: expected Qwen2.5's tokenizer")
    stop = tuple(sorted(added[token] for token in STOP_TOKENS))
    return Vocabulary(tuple(tokens), tuple(sorted(added.values())), stop, merges, rule)


def _check_tokens(path: Path, ids: dict[str, int], added: dict[str, int], merges: tuple) -> None:
    """Everything that would break the file's lines, or that no runtime could merge."""
    if any(not isinstance(number, int) or isinstance(number, bool) for number in (ids | added).values()):
        raise InputError(f"{path}: a token's id is no number")
    for token in added:
        if not token or re.search(r"\s", token):
            raise InputError(f"{path}: the added token {token!r} is empty or holds white space")
    strange = next((token for token in ids if token not in added and not (token and BYTES.keys() >= set(token))), None)
    if strange is not None:
        raise InputError(f"{path}: the token {strange!r} is not spelled in the byte-level alphabet")
    for pair in merges:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= ids.keys():
            raise InputError(f"{path}: the merge {pair!r} does not join two tokens to a third")


def _rule(path: Path, pre_tokenizer: dict) -> int:
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    patterns = [part["pattern"]["Regex"] for part in parts if part["type"] == "Split"]
    for piece, rule in WORD_RULES:
        if len(patterns) == 1 and piece in patterns[0]:
            return rule
    raise InputError(f"{path}: the pre-tokenizer is not Qwen2.5's; the runtime has no rule for {patterns}")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the others follow from U+0100 on.

    https://github.com/openai/gpt-2/blob/master/src/encoder.py (the rule; any byte-level tokenizer has it)
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    spelled = {chr(0x100 + number): byte for number, byte in enumerate(others)}
    return {chr(byte): byte for byte in sorted(printable)} | spelled


BYTES = byte_alphabet()


def token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    """The bytes that each token stands for, by id."""
    added = set(vocabulary.added)
    return [
        token.encode("utf-8") if number in added else bytes(BYTES[letter] for letter in token)
        for number, token in enumerate(vocabulary.tokens)
    ]


def with_merges(vocabulary: Vocabulary) -> str:
    """The file for runtimes that merge as the original tokenizer does (KIND 3)."""
    counts = f"{len(vocabulary.tokens)} {len(vocabulary.merges)} {vocabulary.rule}"
    merges = (f"{left} {right}" for left, right in vocabulary.merges)
    return _lines(*_head(MERGES, vocabulary), counts, *vocabulary.tokens, *merges)


def greedy(vocabulary: Vocabulary) -> str:
    """The file for runtimes that take the longest token that matches (KIND 1): never lossy, often longer."""
    tokens = (base64.b64encode(token).decode("ascii") for token in token_bytes(vocabulary))
    return _lines(*_head(GREEDY, vocabulary), str(len(vocabulary.tokens)), *tokens)


def _head(kind: str, vocabulary: Vocabulary) -> list[str]:
    # MNN-LLM's own writer puts a blank after every id, the last one included.
    ids = "".join(f"{number} " for number in vocabulary.added + vocabulary.stop)
    return [f"{MAGIC} {kind}", f"{len(vocabulary.added)} {len(vocabulary.stop)} 0", ids]


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def check_text(text: str, vocabulary: Vocabulary) -> None:
    """Parses a file's text and compares counts, ids, tokens and merges with the vocabulary.

    Raises:
        ValueError: something differs, or is left over.
    """
    if "\r" in text or not text.endswith("\n"):
        raise ValueError("tokenizer text: lines must end in LF, the last one too")
    lines = iter(text[:-1].split("\n"))
    magic, kind = next(lines).split()
    added, stop, prefix = map(int, next(lines).split())
    ids = tuple(map(int, next(lines).split()))
    counts = [int(number) for number in next(lines).split()]
    rest = list(lines)
    expected = [len(vocabulary.tokens), len(vocabulary.merges), vocabulary.rule] if kind == MERGES else None
    same = (
        magic == MAGIC
        and kind in (MERGES, GREEDY)
        and (added, stop, prefix) == (len(vocabulary.added), len(vocabulary.stop), 0)
        and ids == vocabulary.added + vocabulary.stop
        and counts == (expected or [len(vocabulary.tokens)])
        and len(rest) == sum(counts[:2])
    )
    if same and kind == MERGES:
        size = counts[0]
        same = tuple(rest[:size]) == vocabulary.tokens
        same = same and tuple(tuple(line.split(" ")) for line in rest[size:]) == vocabulary.merges
    elif same:
        same = [base64.b64decode(line, validate=True) for line in rest] == token_bytes(vocabulary)
    if not same:
        raise ValueError("tokenizer text: does not say what tokenizer.json says")
