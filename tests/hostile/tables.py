"""The hostile inputs, by family: name -> Case."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image

from tests.hostile import programs
from tests.hostile.world import (
    BAD,
    CALIB,
    CALIB_AGAIN,
    CAPTURE,
    CHECK,
    EMBED,
    EXPORT,
    FAILED,
    INDEX,
    NO_FILES,
    PACKAGE,
    PICTURES,
    PREFLIGHT,
    REPORT,
    SHARD,
    SIZE,
    VERIFY,
    Case,
    Damage,
    nothing,
    remove,
    replaced,
    write,
)

DONE = {0}
VERDICT = ("work/fidelity",)  # of other pixels and answers than lie there now
ESCAPE = "a\x1b]0;owned\x07\x1b[31m\nb\u202e\x9b"


class Exploit:
    """Unpickling it would make a file."""

    def __reduce__(self):
        return (open, ("exploited", "w"))


# ---- arguments and paths

NUMBERS = ("-1", "0", "nan", "inf", "1e9", "x", "", "9" * 40, "0x10", "１")  # a full-width digit


def arguments() -> dict[str, Case]:
    cases = {}
    flags = (
        (CAPTURE[:4], "--num-frames"),
        (CAPTURE[:4], "--fps"),
        (CAPTURE[:4], "--max-pixels"),
        (EXPORT, "--opset"),
        (CALIB, "--num-samples"),
        (PREFLIGHT, "--prefill-len"),
        (PREFLIGHT, "--kv-cache-len"),
        (PACKAGE, "--prefill-len"),
        (PICTURES, "--max-pixels"),
    )
    fine = {("--num-frames", "１"), ("--fps", "1e9"), ("--fps", "0x10")}
    for command, flag in flags:
        for number in NUMBERS:
            large = number == "9" * 40 or number == "１" or (flag == "--fps" and number == "1e9")
            codes = {0, 1, 2} if large or (flag, number) in fine else BAD
            cases[f"{command[0]} {flag} {number[:9]!r}"] = Case(nothing, [*command, f"{flag}={number}"], codes)
    sizes = (
        ("0", "28"),
        ("-28", "28"),
        ("29", "28"),
        ("28", "5656"),
        ("28000", "28000"),
        ("28", "9" * 30),
        ("x", "28"),
    )
    for command in (CAPTURE[:4], EXPORT[:3], CALIB[:3], PICTURES):
        for size in sizes:
            where = [] if command is PICTURES else ["--workdir", "elsewhere"]
            cases[f"{command[0]} --size {' '.join(size)[:20]}"] = Case(
                nothing, [*command, "--size", *size, *where], BAD
            )
    for command in (CAPTURE, EXPORT, CHECK, CALIB, PREFLIGHT, EMBED, PACKAGE, REPORT, PICTURES):
        cases[f"{command[0]}: unknown flag"] = Case(nothing, [*command, f"--{ESCAPE}"], BAD)
    return cases


NAMES = {"missing": "gone", "long": "n" * 300, "escapes": ESCAPE, "NUL": "a\0b", "surrogate": "a\udcff", "": ""}


def paths() -> dict[str, Case]:
    cases = {}
    inputs = {  # script and flag -> the command with PATH in it
        "capture CKPT": ["run_video_by_sec", "PATH", "--video", "frames", "--workdir", "work"],
        "capture --video": [*CAPTURE[:3], "PATH", *SIZE, "--workdir", "work"],
        "export CKPT": ["export", "PATH", "video", "--workdir", "work"],
        "gate CKPT": ["test_onnx_video_by_sec", "PATH", "--workdir", "work"],
        "gate --workdir": [*CHECK[:3], "PATH"],
        "gate --onnx": [*CHECK, "--onnx", "PATH"],
        "calibration --inputs": [*CALIB[:2], "PATH", "--workdir", "work"],
        "preflight CKPT": ["preflight", "PATH", "--workdir", "work"],
        "embedding CKPT": ["extract_embedding", "PATH", "embedded"],
        "package CKPT": ["package_model", "PATH", "out", "--workdir", "work"],
        "package --workdir": [*PACKAGE[:4], "PATH"],
        "package --check": ["package_model", "--check", "PATH"],
        "report CKPT": ["make_report", "PATH", "--workdir", "work"],
        "report --preflight": [*REPORT, "--preflight", "PATH"],
        "preprocess": ["preprocess", "PATH", "--output", "pixels.npy"],
    }
    for name, command in inputs.items():
        for kind, path in NAMES.items():
            # An empty path is the current directory, as everywhere.
            codes = {0, 1, 2} if kind == "" else BAD
            cases[f"{name}: {kind} name"] = Case(nothing, [path if word == "PATH" else word for word in command], codes)
        for kind in NO_FILES:
            swapped = ["odd" if word == "PATH" else word for word in command]
            cases[f"{name}: {kind}"] = Case(replaced("odd", kind), swapped, {0, 1, 2} if kind == "directory" else BAD)
    for flag, command in (("--config", PREFLIGHT), ("--onnx", PREFLIGHT)):
        for kind in NO_FILES:
            cases[f"preflight {flag}: {kind}"] = Case(replaced("odd", kind), [*command, flag, "odd"], FAILED, "odd")
    outputs = {
        "gate --report": [*CHECK, "--report", "PATH"],
        "report --output": [*REPORT, "--output", "PATH"],
        "preprocess --output": [*PICTURES[:2], "--output", "PATH"],
        "embedding OUT": ["extract_embedding", "ckpt", "PATH"],
        "package OUT": ["package_model", "ckpt", "PATH", "--workdir", "work"],
        "calibration --workdir": [*CALIB[:3], "--workdir", "PATH"],
        "capture --workdir": [*CAPTURE[:4], "--workdir", "PATH"],
    }
    for name, command in outputs.items():
        folders = "OUT" in name or "workdir" in name
        for kind in ("pipe", "socket", "link to a device", "link to itself", *([] if folders else ["directory"])):
            swapped = ["odd" if word == "PATH" else word for word in command]
            cases[f"{name}: {kind}"] = Case(replaced("odd", kind), swapped, BAD, "odd")
        swapped = ["frames/000.png/below" if word == "PATH" else word for word in command]
        cases[f"{name}: below a file"] = Case(nothing, swapped, BAD)
    for script, command in (("embedding", EMBED[:2]), ("package", PACKAGE[:2])):
        for place in ("ckpt", "ckpt/out", "./ckpt/../ckpt"):
            cases[f"{script}: OUT is {place}"] = Case(nothing, [*command, place], BAD, "checkpoint")
    return cases


# ---- JSON

BLOBS: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"size": [56',
    "list": b"[]",
    "null": b"null",
    "text": b'"x"',
    "number": b"1",
    "object": b"{}",
    "bytes": bytes(range(256)),
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "5000 digits": b'{"size": ' + b"9" * 5000 + b"}",
    "infinity": b'{"size": Infinity}',
    "beyond float": b'{"size": 1e999}',
    "key twice": b'{"size": 1, "size": 2}',
    "no UTF-8": b'{"size": "\xff\xfe"}',
    "UTF-16": '{"size": 1}'.encode("utf-16"),
    "lone surrogate": b'{"size": "\\ud800"}',
    "34 MB": b" " * (34 << 20) + b"{}",
}
JSON_FILES: dict[str, list[tuple[list[str], set[int]]]] = {
    "ckpt/config.json": [(EXPORT, BAD), (EMBED, BAD), (PREFLIGHT, FAILED), (PACKAGE, BAD)],
    f"ckpt/{INDEX}": [(EXPORT, BAD), (CAPTURE, BAD)],
    "ckpt/tokenizer.json": [(PACKAGE, BAD)],
    "work/capture.json": [(EXPORT, BAD), (CHECK, BAD), (CALIB_AGAIN, BAD), (PREFLIGHT, FAILED), (REPORT, DONE)],
    "work/calib/manifest.json": [(REPORT, DONE)],
    "work/fidelity.json": [(REPORT, DONE)],
    "work/preflight.json": [(REPORT, DONE)],
    "work/steps.json": [(REPORT, DONE)],
    "out/manifest.json": [(VERIFY, BAD)],
    "conf.json": [([*PREFLIGHT, "--config", "conf.json"], FAILED)],
}


def json_files() -> dict[str, Case]:
    cases = {}
    for path, commands in JSON_FILES.items():
        for command, codes in commands:
            for kind, blob in BLOBS.items():
                if kind == "34 MB" and command not in (EXPORT, VERIFY):
                    continue  # slow, and one door serves them all
                cases[f"{path} {kind}: {command[0]}"] = Case(write(path, blob), command, codes)
            for kind in NO_FILES:
                code = codes if path != "work/capture.json" or command is not REPORT else DONE
                cases[f"{path} {kind}: {command[0]}"] = Case(replaced(path, kind), command, code)
    return cases


# ---- checkpoints


def changed(path: str, *keys: str, value: Any) -> Damage:
    def damage():
        raw = json.loads(Path(path).read_text())
        place = raw
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        Path(path).write_text(json.dumps(raw))

    return damage


VALUES = (-1, 0, "x", None, 1.5, {}, 10**9, 10**400 // 7)
VISION_FIELDS = ("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "fullatt_block_indexes",
                 "window_size", "patch_size", "hidden_act", "tokens_per_second")  # fmt: skip
TEXT_FIELDS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
               "vocab_size", "vision_config", "text_config", "quantization_config", "video_token_id")  # fmt: skip


def configurations() -> dict[str, Case]:
    """Any field may be anything: what is still a model may go through, nothing may break."""
    cases = {}
    for value in VALUES:
        name = repr(value)[:12]
        for field in VISION_FIELDS:
            damage = changed("ckpt/config.json", "vision_config", field, value=value)
            cases[f"vision {field} {name}"] = Case(damage, EXPORT, {0, 1, 2})
        for field in TEXT_FIELDS:
            damage = changed("ckpt/config.json", field, value=value)
            cases[f"{field} {name}: export"] = Case(damage, EXPORT, {0, 1, 2})
            cases[f"{field} {name}: preflight"] = Case(damage, PREFLIGHT, {0, 1, 2})
    return cases


def header(change: Callable[[dict], Any]) -> Damage:
    """Rewrites a safetensors header; the data stays."""

    def damage():
        data = Path(f"ckpt/{SHARD}").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        entries = json.loads(data[8 : 8 + length])
        changed = change(entries)
        text = changed if isinstance(changed, bytes) else json.dumps(entries).encode()
        Path(f"ckpt/{SHARD}").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


EMBEDDING, QKV = "model.embed_tokens.weight", "visual.blocks.0.attn.qkv.weight"


def entry(**fields: Any) -> Damage:
    return header(lambda entries: [entries[name].update(fields) for name in (EMBEDDING, QKV)] and None)


def checkpoints() -> dict[str, Case]:
    damages = {
        "header of length 0": write(f"ckpt/{SHARD}", struct.pack("<Q", 0) + b"{}"),
        "header of 2^63": write(f"ckpt/{SHARD}", struct.pack("<Q", 2**63) + b"{}"),
        "header of 90 MB": write(f"ckpt/{SHARD}", struct.pack("<Q", 90_000_000) + b"{" + bytes(99)),
        "header is no JSON": header(lambda entries: b"{no" + b"x" * 99),
        "header nested": header(lambda entries: b'{"a":' * 50_000),
        "header of digits": header(lambda entries: b'{"a":' + b"9" * 5000 + b"}"),
        "header twice": header(lambda entries: b'{"a":1,"a":2}'),
        "entry null": header(lambda entries: entries.update({EMBEDDING: None, QKV: None})),
        "entry list": header(lambda entries: entries.update({EMBEDDING: [], QKV: []})),
        "dtype a number": entry(dtype=4),
        "dtype unknown": entry(dtype="Q4"),
        "dtype escapes": entry(dtype=ESCAPE),
        "shape of text": entry(shape="48"),
        "shape negative": entry(shape=[-512, -48]),
        "shape of floats": entry(shape=[512.0, 48]),
        "shape of booleans": entry(shape=[True, True]),
        "shape huge": entry(shape=[2**62, 2**62]),
        "shape of digits": entry(shape=[10**300, 1]),
        "offsets overlap": entry(data_offsets=[0, 49152], dtype="U8", shape=[49152]),
        "offsets reversed": entry(data_offsets=[100, 0]),
        "offsets negative": entry(data_offsets=[-8, 0]),
        "offsets huge": entry(data_offsets=[2**62, 2**63]),
        "three offsets": entry(data_offsets=[0, 1, 2]),
        "offsets of floats": entry(data_offsets=[0.5, 8.5]),
        "shard escapes": write(f"ckpt/{INDEX}", json.dumps({"weight_map": {"a": ESCAPE}})),
        "shard above": write(f"ckpt/{INDEX}", '{"weight_map": {"a": "../x"}}'),
        "shard is a number": write(f"ckpt/{INDEX}", '{"weight_map": {"a": 3}}'),
        **{f"shard is a {kind}": replaced(f"ckpt/{SHARD}", kind) for kind in NO_FILES},
    }
    cases = {}
    for name, damage in damages.items():
        for command in (EXPORT, EMBED, PACKAGE):
            cases[f"{name}: {command[0]}"] = Case(damage, command, BAD)
        cases[f"{name}: preflight"] = Case(damage, PREFLIGHT, FAILED)
    for prefix in ("base_model.model.", "module.", "_orig_mod.", "thinker."):
        damage = header(lambda entries, prefix=prefix: prefixed(entries, prefix))
        for command in (CAPTURE, EXPORT, EMBED, PACKAGE):
            cases[f"{prefix}: {command[0]}"] = Case(damage, command, BAD, prefix)
    for part in ("lora_A.weight", "base_layer.weight"):
        damage = header(lambda entries, part=part: entries.update({f"x.{part}": entries.pop(QKV)}))
        cases[f"{part} in it"] = Case(damage, CAPTURE, BAD, "merge the adapter first")
    for method in ("awq", "fp8", "compressed-tensors", "bitsandbytes", ESCAPE):
        damage = changed("ckpt/config.json", "quantization_config", value={"quant_method": method})
        cases[f"quantised with {method[:9]!r}"] = Case(damage, CAPTURE, BAD, "quantised with")
    adapter = write("ckpt/adapter_config.json", "{}")
    for name, command in (("capture", CAPTURE), ("package", PACKAGE)):
        cases[f"an adapter beside: {name}"] = Case(adapter, command, BAD, "merge the adapter first")
    for name, data in (("NaN", '{"a": NaN}'), ("large", " " * (33 << 20)), ("nested", "[" * 99_999)):
        for command in (PACKAGE, [*CHECK, "--generate", "--max-new-tokens", "1"]):
            damage = write("ckpt/trainer_state.json", data)
            cases[f"trainer_state.json, {name}: {command[0]}"] = Case(damage, command, {0, 1}, costs=VERDICT)
    return cases


def prefixed(entries: dict, prefix: str) -> None:
    for name in [name for name in entries if name != "__metadata__"]:
        entries[prefix + name] = entries.pop(name)


# ---- what outputs would replace


def outputs() -> dict[str, Case]:
    """Somebody else's file where one of ours would go, and places that nothing is written to."""
    cases = {}
    names = ("manifest.json", "config.json", "vocab.json", "preprocess.py", "check_board.py", "check/0000.png")
    for name in (*names, "check/check.json", "qwen2.5_tokenizer.txt", "model.embed_tokens.weight.bfloat16.bin"):
        codes = FAILED if name.endswith(".bin") else BAD
        cases[f"package: {name}"] = Case(write(f"out/{name}", '{"mine": 1}'), PACKAGE, codes, name)
    for name, data in (("fresh", b""), ("text", b"mine"), ("long", bytes(1 << 20))):
        damage = write("embedded/model.embed_tokens.weight.bfloat16.bin", data)
        cases[f"embedding: {name}"] = Case(damage, EMBED, BAD, "would be replaced")
    for name, data in (("html", "<!DOCTYPE html><title>mine</title>"), ("empty", ""), ("text", "mine")):
        for place in ("work/report.html", "mine.html"):
            command = [*REPORT, "--output", place]
            cases[f"report: {name} {place}"] = Case(write(place, data), command, BAD, "would be replaced")
        command = [*CHECK, "--report", "mine.json"]
        cases[f"gate: {name}"] = Case(write("mine.json", data), command, BAD, "would be replaced")
        cases[f"gate's tokens: {name}"] = Case(write("mine_tokens.npz", data), command, BAD, "mine_tokens.npz")
    places = {"itself": "ckpt", "below": "ckpt/below", "a link": "link", "below a link": "link/below"}
    places |= {"the cache": "models--a--b/snapshots/x"}
    damage = all_of(lambda: Path("link").symlink_to("ckpt"), lambda: Path("models--a--b/snapshots").mkdir(parents=True))
    for name, place in places.items():
        writers = {
            "capture": [*CAPTURE[:-1], place],
            "export": [*EXPORT[:-1], place],
            "gate": [*CHECK[:-1], place],
            "calibration": [*CALIB[:-1], place],
            "preflight": [*PREFLIGHT[:-1], place],
            "report": [*REPORT[:-1], place],
            "embedding": [*EMBED[:2], place],
            "package": ["package_model", "ckpt", place, "--workdir", "work"],
        }
        for writer, command in writers.items():
            cases[f"{writer}: {name}"] = Case(damage, command, BAD, place)
    return cases


def all_of(*damages: Damage) -> Damage:
    return lambda: [damage() for damage in damages] and None


# ---- arrays and tensors


def as_npy(descr: str, shape: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text + data


def saved(value: Any, **form: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, **form)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


ARRAYS = {
    "empty": b"",
    "text": b"no array",
    "npz": zipped(),
    "pickle": pickle.dumps(Exploit()),
    "objects": saved(np.array([Exploit()], object), allow_pickle=True),
    "structured": saved(np.zeros(3, [("a", "f4"), ("b", "O")]) if False else np.zeros(3, [("a", "f4")])),
    "complex": saved(np.zeros((3, 24), complex)),
    "text array": saved(np.array(["x" * 99])),
    "times": saved(np.zeros(3, "M8[s]")),
    "scalar": saved(np.float32(3)),
    "no shape": as_npy("'<f4'", "()", bytes(4)),
    "huge shape": as_npy("'<f4'", f"({2**62}, {2**62})"),
    "negative shape": as_npy("'<f4'", "(-3, 24)", bytes(288)),
    "endless shape": as_npy("'<f4'", "(" + "1," * 99 + ")", bytes(4)),
    "shape of text": as_npy("'<f4'", "('a',)"),
    "shape that computes": as_npy("'<f4'", "(9**9**9,)"),
    "descr that calls": as_npy("__import__('os')", "(3,)"),
    "subarray": as_npy("('<f4', (9,))", "(3,)", bytes(108)),
    "version 9": as_npy("'<f4'", "(3,)", bytes(12), (9, 9)),
    "longer than it says": saved(np.zeros((3, 24), np.float32)) + b"more",
    "shorter than it says": saved(np.zeros((3, 24), np.float32))[:-9],
    "NaN": saved(np.full((3, 24), np.nan, np.float32)),
    "NaN in the right shape": saved(np.full((18, 48), np.nan, np.float32)),
    "infinite": saved(np.full((18, 48), np.inf, np.float32)),
}


def tensor(value: Any) -> Damage:
    return lambda: torch.save(value, "work/window_index.pth")


def zip_bomb() -> None:
    with zipfile.ZipFile("work/window_index.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))


def arrays() -> dict[str, Case]:
    cases = {}
    for file in ("pixels.npy", "vit_out.npy", "vit_exact.npy"):
        for kind, data in ARRAYS.items():
            cases[f"{file} {kind}"] = Case(write(f"work/{file}", data), CHECK, BAD, file, VERDICT)
        for kind in NO_FILES:
            cases[f"{file} {kind}"] = Case(replaced(f"work/{file}", kind), CHECK, BAD, file, VERDICT)
    tensors = {
        "exploit": write("work/window_index.pth", pickle.dumps(Exploit())),
        "empty": write("work/window_index.pth", b""),
        "zip": zip_bomb,
        "object": tensor({"exploit": Exploit()}),
        "dictionary": tensor({"a": torch.ones(3)}),
        "list": tensor([1, 2]),
        "sparse": tensor(torch.eye(3).to_sparse()),
        "bfloat16": tensor(torch.ones(3, dtype=torch.bfloat16)),
        "complex": tensor(torch.ones(3, dtype=torch.complex64)),
        "NaN": lambda: torch.save(torch.full((24, 8), float("nan")), "work/rotary_pos_emb.pth"),
        **{kind: replaced("work/window_index.pth", kind) for kind in NO_FILES},
    }
    return cases | {f"layout {name}": Case(damage, EXPORT, {1, 2}) for name, damage in tensors.items()}


# ---- media


def picture(path: str, size: tuple[int, int], mode: str = "RGB", **form: Any) -> Damage:
    return lambda: Image.new(mode, size).save(path, **form)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises that size."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def media() -> dict[str, Case]:
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n"
    inputs = {
        "bomb.png": png_of(60_000, 60_000),
        "wide.png": png_of(2**31 - 1, 2**31 - 1),
        "zero.png": png_of(0, 0),
        "thin.png": png_of(1, 300),
        "short.png": png_of(64, 64),
        "list.mp4": playlist,
        "list.m3u8": playlist,
        "list.avi": b"ffconcat version 1.0\nfile ../frames/000.png\n",
        "session.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\nc=IN IP4 127.0.0.1\n",
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "picture.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "text.mp4": b"no video\n" * 999,
        "zeros.mp4": bytes(1 << 16),
        "half.gif": b"GIF89a\x10\x00\x10\x00",
        "half.jpg": b"\xff\xd8\xff\xe0" + bytes(99),
        "half.webp": b"RIFF\xff\xff\xff\x7fWEBPVP8 ",
        "half.tif": b"II*\0\x08\0\0\0\xff\xff",
        "pickle.mp4": pickle.dumps(Exploit()),
        "gzip.png": gzip.compress(bytes(99)),
    }
    cases = {}
    for name, data in inputs.items():
        for command in ([*CAPTURE[:3], name, *SIZE, "--workdir", "work"], [*CALIB[:2], name, "--workdir", "work"]):
            cases[f"{name}: {command[0]}"] = Case(write(name, data), command, BAD, name)
        if not name.endswith((".mp4", ".avi", ".m3u8", ".eps")):
            command = ["preprocess", name, "--output", "pixels.npy"]
            cases[f"{name}: preprocess"] = Case(write(name, data), command, BAD, name)
        inside = write(f"frames/{name}", data)
        if name.endswith((".png", ".jpg", ".webp", ".tif")):
            cases[f"{name} in a directory"] = Case(inside, CAPTURE, BAD, name)
    for kind in NO_FILES:
        cases[f"{kind} beside frames"] = Case(replaced("frames/000.png", kind), CALIB, {0, 2})
    return cases


# ---- graphs, the archive, the package


def graph(change: Callable[[onnx.ModelProto], Any], name: str = "ckpt_vision.onnx") -> Damage:
    def damage():
        model = onnx.load(f"work/{name}", load_external_data=False)
        change(model)
        Path(f"work/{name}").write_bytes(model.SerializeToString())

    return damage


def place(key: str, value: str) -> Damage:
    return graph(
        lambda model: [
            setattr(entry, "value", value)
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == key
        ]
    )


def metadata(value: str) -> Damage:
    return graph(lambda model: [setattr(entry, "value", value) for entry in model.metadata_props])


def graphs() -> dict[str, Case]:
    damages = {
        "empty": write("work/ckpt_vision.onnx", b""),
        "text": write("work/ckpt_vision.onnx", b"text" * 99),
        "pickle": write("work/ckpt_vision.onnx", pickle.dumps(Exploit())),
        "metadata no JSON": metadata("{"),
        "metadata deep": metadata("[" * 50_000),
        "metadata digits": metadata("9" * 5000),
        "metadata NaN": metadata("NaN"),
        "metadata null": metadata("null"),
        "metadata escapes": metadata(json.dumps(ESCAPE)),
        "weights above": place("location", "../ckpt_vision.onnx.data"),
        "weights anywhere": place("location", "/etc/passwd"),
        "weights nowhere": place("location", ""),
        "offset text": place("offset", "x"),
        "offset negative": place("offset", "-4096"),
        "offset huge": place("offset", "9" * 18),
        "length huge": place("length", "9" * 30),
        "no nodes": graph(lambda model: model.graph.ClearField("node")),
        "no inputs": graph(lambda model: model.graph.ClearField("input")),
        **{f"data {kind}": replaced("work/ckpt_vision.onnx.data", kind) for kind in NO_FILES},
        **{f"graph {kind}": replaced("work/ckpt_vision.onnx", kind) for kind in NO_FILES},
    }
    cases = {f"{name}: gate": Case(damage, CHECK, {1, 2}, "", VERDICT) for name, damage in damages.items()}
    return cases | {f"{name}: preflight": Case(damage, PREFLIGHT, FAILED) for name, damage in damages.items()}


def tar(*members: tuple[str, bytes], **fields: Any) -> Damage:
    def damage():
        with tarfile.open("work/calib/hidden_states.tar", "w") as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                for field, value in fields.items():
                    setattr(info, field, value)
                archive.addfile(info, io.BytesIO(data) if info.isfile() else None)

    return damage


def sample(value: float = 3, shape: tuple[int, ...] = (1, 3, 24, 392)) -> bytes:
    return saved(np.full(shape, value, np.float32))


def compressed() -> None:
    data = Path("work/calib/hidden_states.tar").read_bytes()
    Path("work/calib/hidden_states.tar").write_bytes(gzip.compress(data))


def lying_size() -> None:
    """A member whose header claims half a terabyte."""
    info = tarfile.TarInfo("sample_00000.npy")
    info.size = 1 << 39
    Path("work/calib/hidden_states.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def archives() -> dict[str, Case]:
    damages = {
        "compressed": compressed,
        "size that lies": lying_size,
        "10^5 members": tar(
            *[(f"sample_{number:05d}.npy", sample(number, (1, 3, 1, 1))) for number in (1, 2)] * 50_000
        ),
        "climbs": tar(("../x.npy", sample())),
        "absolute": tar(("/x.npy", sample())),
        "escapes": tar((f"{ESCAPE}.npy", sample())),
        "link": tar(("x.npy", b""), type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "device": tar(("x.npy", b""), type=tarfile.CHRTYPE),
        "pipe": tar(("x.npy", b""), type=tarfile.FIFOTYPE),
        "NaN": tar(("x.npy", sample(np.nan))),
        **{f"member {kind}": tar(("x.npy", data)) for kind, data in ARRAYS.items()},
        "bomb": tar(("x.png", png_of(60_000, 60_000))),
        **{kind: replaced("work/calib/hidden_states.tar", kind) for kind in NO_FILES},
    }
    cases = {f"archive {name}": Case(damage, PREFLIGHT, FAILED) for name, damage in damages.items()}
    calibs = {
        "a directory named like a sample": lambda: os.mkdir("work/calib/sample_00099.npy"),
        "a foreign file": write("work/calib/notes.txt", "mine"),
        "a link named like a sample": lambda: os.symlink("/etc/passwd", "work/calib/sample_00099.npy"),
        **{f"calib is a {kind}": replaced("work/calib", kind) for kind in NO_FILES if kind != "directory"},
    }
    return cases | {f"calibration: {name}": Case(damage, CALIB, BAD) for name, damage in calibs.items()}


def manifest(**fields: Any) -> Damage:
    def damage():
        raw = json.loads(Path("out/manifest.json").read_text())
        raw["files"][0] |= fields
        Path("out/manifest.json").write_text(json.dumps(raw))

    return damage


def files_twice() -> None:
    text = Path("out/manifest.json").read_text().rstrip()
    Path("out/manifest.json").write_text(text[:-1] + ', "files": []}')


def packages() -> dict[str, Case]:
    cases = {
        "unlisted model": Case(write("out/other.axmodel", "x"), VERIFY, FAILED, "other.axmodel"),
        "unlisted model below": Case(write("out/video56x84/x.axmodel", "x"), VERIFY, FAILED, "x.axmodel"),
        "unlisted file": Case(write("out/notes.txt", "x"), VERIFY, DONE, "notes.txt"),
        "unlisted escapes": Case(write(f"out/{ESCAPE}", "x"), VERIFY, DONE, "warning"),
        "file missing": Case(remove("out/config.json"), VERIFY, FAILED, "config.json"),
    }
    for name, value in (("above", "../x"), ("absolute", "/etc/passwd"), ("NUL", "a\0b"), ("number", 3), ("empty", ""),
                        ("surrogate", "\ud800"), ("null", None)):  # fmt: skip
        cases[f"manifest path {name}"] = Case(manifest(path=value), VERIFY, BAD)
    for name, value in (("negative", -1), ("text", "x"), ("float", 1.5), ("null", None), ("true", True)):
        cases[f"manifest bytes {name}"] = Case(manifest(bytes=value), VERIFY, {1, 2})
    for name, fields in {
        "complete, nothing missing": {"complete": False, "missing": []},
        "format true": {"format": True},
        "a terabyte": {"files": [{"path": "config.json", "bytes": 1 << 40, "sha256": "0" * 64}]},
        "another field": {"x": 1},
    }.items():
        damage = programs.edited("out/manifest.json", lambda raw, fields=fields: raw.update(fields))
        cases[f"manifest: {name}"] = Case(damage, [*VERIFY, "--require-complete"], BAD, "manifest.json")
        cases[f"manifest: {name}, package"] = Case(damage, PACKAGE, BAD, "manifest.json")
    cases["manifest: files twice"] = Case(files_twice, VERIFY, BAD, "twice")
    for kind in NO_FILES:
        cases[f"file is a {kind}"] = Case(replaced("out/config.json", kind), VERIFY, FAILED, "config.json")
        cases[f"hub file is a {kind}"] = Case(replaced("ckpt/vocab.json", kind), PACKAGE, {0, 2})
        cases[f"target is a {kind}"] = Case(replaced("out/config.json", kind), PACKAGE, {0, 2})
    return cases


FAMILIES = {
    "arguments": arguments,
    "paths": paths,
    "JSON": json_files,
    "configurations": configurations,
    "checkpoints": checkpoints,
    "outputs": outputs,
    "arrays": arrays,
    "media": media,
    "graphs": graphs,
    "archives": archives,
    "packages": packages,
    "templates": programs.templates,
    "compilers": programs.compilers,
    "previews": partial(programs.previews, BLOBS),
    "board": partial(programs.board, BLOBS),
    "chain": partial(programs.chain, BLOBS),
}
