"""Hostile inputs that are programs or come from some: templates, tokenizers, compilers, boards, a shell's variables."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.world import BAD, CHECK, FAILED, NO_FILES, PREFLIGHT, Case, Damage, replaced, write

DONE, ANY = {0}, {0, 1, 2}
ASK = [*CHECK, "--generate", "--max-new-tokens", "1", "--prompt"]
BOARD = ["check_board", "--print", "--check", "out/check"]
ADVICE = ["qwen_vl_axera.quantization.advice", "--workdir", "work"]
PREVIEW = ["preview_quantization", "ckpt", "--workdir", "work", "--config", "conf.json"]
PROBE = ["probe_build", "ckpt", "--window-mode", "grouped", "--workdir", "work"]
BUILD = ["qwen_vl_axera.compiler.__main__", "build", "work/ckpt_vision.onnx", "--config", "good.json"]
CHAIN = ["qwen_vl_axera.chain.__main__", "ckpt", "frames", "--check"]
CHAIN_PLACE = {"WORKDIR": "work", "OUT": "out", "CONFIG": "good.json"}
HERE = Path(__file__).resolve().parents[2]
ESCAPE = "a\x1b]0;owned\x07\x1b[31m\nb\u202e\x9b"


def all_of(*damages: Damage) -> Damage:
    return lambda: [damage() for damage in damages] and None


def edited(path: str, change: Callable[[Any], Any]) -> Damage:
    """Changes a JSON file in place."""

    def damage():
        raw = json.loads(Path(path).read_text())
        change(raw)
        Path(path).write_text(json.dumps(raw))

    return damage


# ---- templates and tokenizers

PAD = "<|vision_start|><|video_pad|><|vision_end|>"
TEMPLATES = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a * b %}{% endfor %}{% endfor %}",
    "prints gigabytes": "{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
    "makes gigabytes": "{{ 'x' * 2000000000 }}",
    "calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "climbs": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "includes": "{% include '/etc/passwd' %}",
    "is nested": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "is half": "{% for x in %}",
    "has a surrogate": "{{ '\\ud800' }}" + PAD,
    "has escapes": "{{ raise_exception('\x1b[31m\x07\u202e') }}",
    "has no pad": "hello",
    "has 5000 pads": "<|video_pad|>" * 5000,
    "is long": "abc " * 260_000 + PAD,
}


def template(text: str) -> Damage:
    return write("ckpt/chat_template.json", json.dumps({"chat_template": text}))


def tokenizer(**parts: Any) -> Damage:
    """A tokenizer.json with other parts, that transformers runs as it is."""
    as_it_is = {"tokenizer_class": "PreTrainedTokenizerFast"}
    return all_of(
        edited("ckpt/tokenizer.json", lambda raw: raw.update(parts)),
        edited("ckpt/tokenizer_config.json", lambda raw: raw.update(as_it_is)),
    )


def doubling() -> dict:
    return {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


TOKENIZERS = {
    "doubles 40 times": tokenizer(normalizer={"type": "Sequence", "normalizers": [doubling()] * 40}),
    "grows": tokenizer(normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1_000_000}),
    "backtracks": tokenizer(pre_tokenizer=split(r"(x+x+)+y")),
    "backtracks within": tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [split(r"(x+x+)+y")]}),
    "backtracks in a normalizer": tokenizer(normalizer={"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}}),
    "decodes to much": tokenizer(decoder={"type": "Replace", "pattern": {"String": ""}, "content": "y" * 1_000_000}),
    "post-processes": tokenizer(post_processor={"type": "TemplateProcessing", "single": [], "pair": []}),
    "is no BPE": tokenizer(model={"type": "WordPiece"}),
    "is a list": write("ckpt/tokenizer.json", "[]"),
    "has no model": tokenizer(model=None),
    "has parts of text": tokenizer(pre_tokenizer="x"),
    "has parts of parts of text": tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": "x"}),
    "has ids beyond the model": all_of(
        tokenizer(), edited("ckpt/tokenizer.json", lambda raw: raw["model"]["vocab"].update(x=100_000))
    ),
    "has a length of text": edited("ckpt/tokenizer_config.json", lambda raw: raw.update(model_max_length="abc")),
    "has a class of number": edited("ckpt/tokenizer_config.json", lambda raw: raw.update(tokenizer_class=5)),
    "has stops of text": write("ckpt/generation_config.json", '{"eos_token_id": "x"}'),
}
PROMPTS = {"surrogate": "a\udcff", "pad": "<|video_pad|>", "picture's pad": "a <|image_pad|>", "long": "x " * 50_000}


def templates() -> dict[str, Case]:
    """What can't be asked costs no earlier verdict, and comes before any language model is loaded."""
    cases = {}
    for name, text in TEMPLATES.items():
        cases[f"template {name}: gate"] = Case(template(text), [*ASK, "x"], BAD, "ckpt")
    for name in ("loops", "prints gigabytes", "has a surrogate", "is long"):
        cases[f"template {name}: preflight"] = Case(template(TEMPLATES[name]), PREFLIGHT, FAILED)
    for name, damage in TOKENIZERS.items():
        cases[f"tokenizer {name}: gate"] = Case(damage, [*ASK, "x" * 200], BAD, "ckpt")
    for name in ("doubles 40 times", "backtracks"):
        cases[f"tokenizer {name}: preflight"] = Case(TOKENIZERS[name], PREFLIGHT, FAILED)
    short = edited("ckpt/config.json", lambda raw: raw.update(max_position_embeddings=2048))
    for name, prompt in PROMPTS.items():
        word = "question" if name.endswith("pad") else "ckpt"
        cases[f"prompt {name}: gate"] = Case(short, [*ASK, prompt], BAD, word)
    damage = all_of(short, template("abc " * 3800 + PAD))
    cases["template is longer than the model: gate"] = Case(damage, [*ASK, "x"], BAD, "2048 positions")
    for kind in NO_FILES:
        if kind not in ("link to nothing",):
            damage = replaced("ckpt/chat_template.jinja", kind)
            cases[f"chat_template.jinja {kind}"] = Case(damage, [*ASK, "x"], BAD, "chat_template.jinja")
    for value in ([10**9, 1, 1], ["a"], [], [1], {}, 5, [-4, 8, 8], "x"):
        damage = edited("ckpt/config.json", lambda raw, value=value: raw["rope_scaling"].update(mrope_section=value))
        cases[f"mrope_section {value!r}"[:40]] = Case(damage, [*ASK, "x"], BAD, "mrope_section")
    deep = edited("ckpt/config.json", lambda raw: raw["vision_config"].update(depth=10**9))
    cases["depth 10^9: gate"] = Case(deep, CHECK, BAD, "depth")
    return cases


# ---- the compiler

VERSION = '#!/bin/bash\n[ "$1" = version ] && { echo "version: 7.0"; exit 0; }\n'
OPTIONS = (
    'for word in "$@"; do [ "$last" = --output_dir ] && o=$word; [ "$last" = --output_name ] && n=$word; last=$word; '
    'done; mkdir -p "$o/quant"\n'
)
BUILT = OPTIONS + 'if [ "$1" = build ]; then echo x > "$o/$n"; exit 0; fi\n'
TOKENS = 'for s in 0 1 2 3; do mkdir -p "$o/step$s"; {}; done\n'
OUTPUT = '"$o/step$s/hidden_states_out.bin"'
BUILDS = {
    "makes nothing": "exit 0",
    "prints garbage": r"head -c 100000 /dev/urandom | tr -d '\r'; exit 3",
    "prints escapes": r"printf '\033[2J\033]0;owned\007\302\2331m\342\200\256' >&2; exit 3",
    "prints one line of 50 MB": r"head -c 50000000 /dev/zero | tr '\0' x; exit 3",
    "leaves something running": "(sleep 30 & ) ; exit 1",
    "is killed": "kill -9 $$",
    "makes an empty file": OPTIONS + ': > "$o/$n"',
    "makes a pipe": OPTIONS + 'mkfifo "$o/$n"',
    "makes a directory": OPTIONS + 'mkdir "$o/$n"',
    "makes a link to a device": OPTIONS + 'ln -s /dev/zero "$o/$n"',
    "removes its directory": OPTIONS + 'rm -r "$o"',
}
RUNS = {
    "prints a cycle": OPTIONS + 'echo x > "$o/$n"; echo "max_cycle = 12"',
    "simulates nothing": BUILT,
    "removes the output": BUILT + 'rm -r "$o"',
    "makes a file of the output": BUILT + 'rm -r "$o"; touch "$o"',
    "simulates a pipe": BUILT + TOKENS.format(f"mkfifo {OUTPUT}"),
    "simulates a device": BUILT + TOKENS.format(f"ln -s /dev/zero {OUTPUT}"),
    "simulates 30 GB": BUILT + TOKENS.format(f"truncate -s 30G {OUTPUT}"),
    "simulates NaN": BUILT + TOKENS.format(rf"head -c 1152 /dev/zero | tr '\0' '\377' > {OUTPUT}"),
    "simulates zeros": BUILT + TOKENS.format(f"head -c 1152 /dev/zero > {OUTPUT}"),
}


def compiler(script: str) -> Damage:
    """A stand-in of that body, and a configuration that fits."""

    def damage():
        Path("pulsar2").write_text(VERSION + script + "\n")
        Path("pulsar2").chmod(0o755)
        os.environ["PULSAR2"] = "./pulsar2"
        Path("good.json").write_bytes((HERE / "config_video.json").read_bytes())

    return damage


def compilers() -> dict[str, Case]:
    cases = {}
    for name, script in BUILDS.items():
        cases[f"compiler {name}: build"] = Case(
            compiler(script), [*BUILD, "--workdir", "work", "--deliver", "out/a.axmodel"], FAILED, "pulsar2 build"
        )
    for name, script in (BUILDS | RUNS).items():
        cases[f"compiler {name}: probe"] = Case(compiler(script), PROBE, FAILED)
    for value in ("gone", "docker:", "docker:-v", "docker:a b", "/etc/passwd", "/tmp", ESCAPE, "$(id)", "-x", " "):
        damage = all_of(compiler(""), lambda value=value: os.environ.update(PULSAR2=value))
        cases[f"PULSAR2={ascii(value)[:20]}"] = Case(damage, [*BUILD[:1], "version"], BAD, "PULSAR2")
    return cases


# ---- a preview's files, and the board's


def previews(blobs: dict[str, bytes]) -> dict[str, Case]:
    cases = {}
    mixed = write("work/config_video_mixed.json", "{}")
    for kind, blob in blobs.items():
        if kind == "34 MB":
            continue
        cases[f"--config {kind}: preview"] = Case(write("conf.json", blob), PREVIEW, BAD)
        damage = all_of(mixed, write("work/quantization.json", blob))
        cases[f"quantization.json {kind}: advice"] = Case(damage, ADVICE, DONE, "quantization.json")  # advice only
    for kind in NO_FILES:
        cases[f"--config {kind}: preview"] = Case(replaced("conf.json", kind), PREVIEW, BAD, "conf.json")
        damage = all_of(mixed, replaced("work/quantization.json", kind))
        cases[f"quantization.json {kind}: advice"] = Case(damage, ADVICE, {0, 2})
    for kind in ("pipe", "directory", "socket"):
        damage = replaced("work/ckpt_vision.onnx", kind)
        cases[f"graph {kind}: preview"] = Case(damage, PREVIEW[:4], BAD, "ckpt_vision.onnx")
    return cases


def board(blobs: dict[str, bytes]) -> dict[str, Case]:
    cases = {}
    for kind, blob in blobs.items():
        cases[f"check.json {kind}: board"] = Case(write("out/check/check.json", blob), BOARD, BAD, "check.json")
    for kind in NO_FILES:
        cases[f"check.json {kind}: board"] = Case(replaced("out/check/check.json", kind), BOARD, BAD, "check.json")
        cases[f"frame {kind}: board"] = Case(replaced("out/check/0000.png", kind), BOARD, BAD, "0000.png")
    secret = all_of(replaced("out/check/0000.png", "link to nothing"), write("out/check/gone", "secret"))
    cases["frame that is no picture: board"] = Case(secret, BOARD, BAD, "0000.png")
    huge = all_of(write("out/check/0000.png", b"\x89PNG"), lambda: os.truncate("out/check/0000.png", 9 << 30))
    cases["frame of 9 GB: board"] = Case(huge, BOARD, BAD, "0000.png")
    fields = {"frames": (5, {}, [ESCAPE], ["../x.png"]), "questions": (5, [{}]), "settings": (5,), "format": (2, True)}
    for field, value in ((field, value) for field, values in fields.items() for value in values):
        damage = edited("out/check/check.json", lambda raw, field=field, value=value: raw.update({field: value}))
        cases[f"check.json {field} {ascii(value)[:20]}: board"] = Case(damage, BOARD, BAD)
    escapes = edited("out/check/check.json", lambda raw: raw.update(settings=ESCAPE))
    cases["check.json settings escapes: board"] = Case(escapes, BOARD, DONE)
    return cases


# ---- the chain

VARIABLES = {
    "SIZE": ("$(touch exploited) 28", "* *", "28\n28 28", "29 28", "28", "-28 -28", "１６８ １６８", "0 0"),
    "NUM_FRAMES": ("8; id", "0", "9" * 40, "8 9", "x", "-1", "1.5"),
    "FPS": ("nan", "inf", "-1", "1 2", "x", "0"),
    "NUM_SAMPLES": ("0", "x", "1e3"),
    "GENERATE": ("yes", "2", " "),
    "CHIP": (ESCAPE, "AX999"),
    "PREFILL_LEN": ("0", "x", "9" * 30),
    "KV_CACHE_LEN": ("1", "-1", "x"),
    "LAST_KV_CACHE_LEN": ("128 x", ",", "256 128", " ".join(["128"] * 3000)),
    "WEIGHT_TYPE": ("q9", ESCAPE),
    "WINDOW_MODE": ("$(id)", "Grouped"),
    "INPUT": ("x",),
    "OPSET": ("99", "17.0"),
    "PROBE": ("2",),
    "QUANTIZE": ("x",),
    "BUILD_FLAGS": ('"open', "'"),
    "LLM_BUILD_FLAGS": ('"open',),
    "DOCKER_FLAGS": ("'",),
}


def chain(blobs: dict[str, bytes]) -> dict[str, Case]:
    def variables(**given: str) -> Damage:
        return lambda: os.environ.update(CHAIN_PLACE | given)

    cases = {}
    for name, values in VARIABLES.items():
        for value in values:
            damage = all_of(compiler(""), variables(**{name: value}))
            cases[f"{name}={ascii(value)[:30]}"] = Case(damage, CHAIN, BAD)
    for kind in NO_FILES:
        if kind != "directory":
            damage = all_of(compiler(""), variables(), replaced("work/.steps/lock", kind))
            cases[f"lock {kind}: chain"] = Case(damage, CHAIN, BAD | DONE if kind == "link to nothing" else BAD, "")
            damage = all_of(compiler(""), variables(WORKDIR="odd"), replaced("odd", kind))
            cases[f"WORKDIR is a {kind}"] = Case(damage, CHAIN, BAD, "odd")
    return cases
