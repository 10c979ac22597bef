"""package_model.py, run as a user would: on the host, and alone on the board."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import onnx
import pytest

from qwen_vl_axera.oracle.record import Capture
from tests.conftest import ROOT
from tests.tiny import make_tiny

LAYERS = 2
RUNTIME_REQUIRED = (
    "model_name", "tokenizer_type", "url_tokenizer_model", "template_filename_axmodel", "axmodel_num",
    "filename_post_axmodel", "filename_tokens_embed", "tokens_embed_num", "tokens_embed_size",
)  # fmt: skip
POST_REQUIRED = {
    "enable_temperature", "temperature", "enable_repetition_penalty", "repetition_penalty", "penalty_window",
    "enable_top_p_sampling", "top_p", "enable_top_k_sampling", "top_k",
}  # fmt: skip


def capture(fps: float = 4.0, size: tuple[int, int] = (168, 168)) -> Capture:
    grid = (4, size[0] // 14, size[1] // 14)
    return Capture(size, grid, "frames", ["clip"], list(range(8)), fps, 2 / fps, "tiny", {})


def write_capture(workdir: Path, **fields) -> None:
    (workdir / "capture.json").write_text(json.dumps(asdict(capture(**fields))))


def build_layers(out: Path, prefill: int = 512, numbers=range(LAYERS)) -> None:
    """Stands in for `pulsar2 llm_build`."""
    out.mkdir(exist_ok=True)
    for number in numbers:
        (out / f"qwen2_5_vl_p{prefill}_l{number}_together.axmodel").write_bytes(b"layer %d" % number)
    (out / "qwen2_5_vl_post.axmodel").write_bytes(b"post")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("package") / "my 模型 [3B] it's")


@pytest.fixture
def place(tmp_path, model, run_script):
    """A work directory with a capture, an empty OUT, and the script."""

    class Place:
        name, work, out = model.name, tmp_path / "work dir", tmp_path / "out 目录"

        def package(self, *flags, ckpt: Path = model):
            return run_script("package_model.py", ckpt, self.out, "--workdir", self.work, *flags)

        def check(self, directory: Path | None = None, *flags):
            return run_script("package_model.py", "--check", directory or self.out, *flags)

        def manifest(self) -> dict:
            return json.loads((self.out / "manifest.json").read_text(encoding="utf-8"))

        def build_all(self) -> None:
            build_layers(self.out)
            (self.out / f"{self.name}_vision.axmodel").write_bytes(b"vision")

    place = Place()
    place.work.mkdir()
    write_capture(place.work)
    return place


def refused(done, code: int, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_before_the_build(place, model):
    done = place.package()
    assert done.returncode == 0, done.stderr
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.json"):
        assert (place.out / name).read_bytes() == (model / name).read_bytes()
    assert not (place.out / "model.safetensors.index.json").exists()  # its weights do not travel
    assert (place.out / "merges.txt").is_file()
    assert (place.out / "model.embed_tokens.weight.bfloat16.bin").stat().st_size == 2 * 512 * 48
    assert not list(place.out.rglob("*.safetensors")) and not list(place.out.rglob("*.tmp"))
    manifest = place.manifest()
    layers = [f"qwen2_5_vl_p512_l{number}_together.axmodel" for number in range(LAYERS)]
    assert manifest["missing"] == sorted([*layers, "qwen2_5_vl_post.axmodel", f"{model.name}_vision.axmodel"])
    assert not manifest["complete"]
    assert "pulsar2 llm_build" in done.stdout
    assert place.package("--require-complete").returncode == 1
    assert place.check().returncode == 0
    assert place.check(None, "--require-complete").returncode == 1


def test_after_the_build(place, model):
    build_layers(place.out)
    (place.work / "build-output").mkdir()
    (place.work / "build-output" / f"{model.name}_vision.axmodel").write_bytes(b"vision")
    done = place.package("--require-complete")
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = place.manifest()
    assert (manifest["complete"], manifest["missing"]) == (True, [])
    listed = {entry["path"]: entry for entry in manifest["files"]}
    there = {p.relative_to(place.out).as_posix(): p for p in place.out.rglob("*") if p.is_file()}
    assert listed.keys() == there.keys() - {"manifest.json"}
    assert list(listed) == sorted(listed)
    for name, entry in listed.items():
        data = there[name].read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    before = (place.out / "manifest.json").read_bytes()
    assert place.package().returncode == 0
    assert (place.out / "manifest.json").read_bytes() == before


def test_a_compiled_layer_that_is_cut_off(place):
    place.build_all()
    layer = place.out / "qwen2_5_vl_p512_l1_together.axmodel"
    node = onnx.helper.make_node("neu mode", ["a"], ["b"])
    weights = onnx.helper.make_tensor("npu_params", onnx.TensorProto.UINT8, [300], bytes(300), raw=True)
    whole = onnx.helper.make_model(onnx.helper.make_graph([node], "layer", [], [], [weights])).SerializeToString()
    layer.write_bytes(whole)
    assert place.package("--require-complete").returncode == 0
    layer.write_bytes(whole[: len(whole) // 2])
    refused(place.package(), 1, layer.name, "cut off", "remove it and run pulsar2 llm_build again")


def test_runtime_settings_resolve_to_the_files(place, model):
    place.build_all()
    assert place.package().returncode == 0
    directory = place.out / "video168x168"
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert all(config[key] not in ("", None) for key in RUNTIME_REQUIRED)
    assert (config["tokenizer_type"], config["vlm_type"]) == ("Qwen3VL", "Qwen2_5VL")
    assert (config["axmodel_num"], config["tokens_embed_num"], config["tokens_embed_size"]) == (LAYERS, 512, 48)
    assert (config["vision_height"], config["vision_width"]) == (168, 168)
    assert (config["vision_fps"], config["vision_tokens_per_second"]) == (4, 2)
    assert config["template_filename_axmodel"].count("%d") == 1
    keys = ("url_tokenizer_model", "filename_post_axmodel", "filename_tokens_embed", "filename_image_encoder_axmodel")
    names = [config[key] for key in keys] + [config["template_filename_axmodel"] % n for n in range(LAYERS)]
    for name in [*names, config["post_config_path"]]:
        assert (directory / name).is_file(), name
    post = json.loads((directory / "post_config.json").read_text())
    assert post.keys() == POST_REQUIRED
    assert not any(value for key, value in post.items() if key.startswith("enable_"))
    # The hub's own file keeps its name at the top.
    assert json.loads((place.out / "config.json").read_text())["model_type"] == "qwen2_5_vl"
    assert not [path for path in directory.iterdir() if path.is_dir()]


def test_several_sizes_and_pictures(place, model):
    stem = f"{model.name}_vision"
    place.out.mkdir()
    for name in (f"{stem}_168x168", f"{stem}_140x252", f"{stem}_image"):
        (place.out / f"{name}.axmodel").write_bytes(b"vision")
    (place.out / "other_vision_56x56.axmodel").write_bytes(b"another model's")
    (place.work / f"{stem}_140x252_uint8.onnx").write_bytes(b"for ONNX Runtime only")
    assert place.package().returncode == 0
    configs = {p.parent.name: json.loads(p.read_text()) for p in place.out.glob("*/config.json")}
    encoders = {name: config["filename_image_encoder_axmodel"] for name, config in configs.items()}
    assert encoders == {
        "video168x168": f"../{stem}_168x168.axmodel",
        "video140x252": f"../{stem}_140x252.axmodel",
        "image448x448": f"../{stem}_image.axmodel",
    }
    assert (configs["video140x252"]["vision_height"], configs["video140x252"]["vision_width"]) == (140, 252)


def test_a_plain_name_takes_the_graphs_size(place, model, run_script):
    assert run_script("export.py", model, "image", "--size", "56", "84", "--workdir", place.work).returncode == 0
    done = place.package()
    assert done.returncode == 0, done.stderr
    assert (place.out / "image56x84" / "config.json").is_file()
    assert f"{model.name}_vision_image.axmodel" in place.manifest()["missing"]


def test_one_size_under_two_names(place, model, run_script):
    """A graph that was exported of that size under the other name must not hide the compiled model."""
    assert run_script("export.py", model, "image", "--size", "56", "84", "--workdir", place.work).returncode == 0
    place.out.mkdir()
    (place.out / f"{model.name}_vision_image_56x84.axmodel").write_bytes(b"vision")
    assert place.package().returncode == 0
    config = json.loads((place.out / "image56x84" / "config.json").read_text())
    assert config["filename_image_encoder_axmodel"] == f"../{model.name}_vision_image_56x84.axmodel"
    assert f"{model.name}_vision_image.axmodel" not in place.manifest()["missing"]


def test_a_missing_layer_is_named(place):
    place.build_all()
    (place.out / "qwen2_5_vl_p512_l1_together.axmodel").unlink()
    done = place.package("--require-complete")
    assert done.returncode == 1
    assert "qwen2_5_vl_p512_l1_together.axmodel" in done.stdout
    assert place.manifest()["missing"] == ["qwen2_5_vl_p512_l1_together.axmodel"]


def test_prefill_length_comes_from_the_names(place):
    build_layers(place.out, prefill=640)
    assert place.package().returncode == 0
    (place.out / f"{place.name}_vision.axmodel").write_bytes(b"vision")
    assert place.package("--require-complete").returncode == 0
    config = json.loads((place.out / "video168x168" / "config.json").read_text())
    assert config["template_filename_axmodel"] == "../qwen2_5_vl_p640_l%d_together.axmodel"
    build_layers(place.out, prefill=128)
    refused(place.package(), 2, "128 (2 layers), 640 (2 layers)", "--prefill-len")
    assert place.package("--prefill-len", "128", "--require-complete").returncode == 0
    refused(place.package("--prefill-len", "0"), 2, "--prefill-len 0")


def test_layers_of_a_larger_model(place):
    build_layers(place.out, numbers=range(LAYERS + 1))
    refused(place.package(), 1, "_l2_", "has 2 layers")


@pytest.mark.parametrize("name", ["qwen2_5_vl_p512_l0_together.axmodel", "qwen2_5_vl_post.axmodel", "VISION"])
def test_an_empty_model(place, name):
    place.build_all()
    name = name.replace("VISION", f"{place.name}_vision.axmodel")
    (place.out / name).write_bytes(b"")
    refused(place.package(), 1, name, "empty")


def test_embeddings_truncated_or_of_another_model(place):
    assert place.package().returncode == 0
    path = place.out / "model.embed_tokens.weight.bfloat16.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    refused(place.package(), 1, "49150 bytes", "extract_embedding.py")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(place.package(), 1, "not this checkpoint's")


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_refused_run_leaves_the_package_as_it_was(place):
    """Its manifest, too: what is uploaded then is the earlier package, and whole."""
    place.build_all()
    assert place.package().returncode == 0
    embedding = place.out / "model.embed_tokens.weight.bfloat16.bin"
    good = embedding.read_bytes()
    write_capture(place.work, fps=2.0)  # other settings would come
    (place.work / "build-output").mkdir()
    (place.work / "build-output" / f"{place.name}_vision.axmodel").write_bytes(b"another")
    flip(embedding)
    before = everything(place.out)
    refused(place.package(), 1, embedding.name)
    assert everything(place.out) == before
    embedding.write_bytes(good)
    (place.out / "vocab.json").unlink()
    (place.out / "vocab.json").mkdir()
    before = everything(place.out)
    refused(place.package(), 2, "vocab.json", "directory")
    assert everything(place.out) == before
    (place.out / "vocab.json").rmdir()
    assert place.package("--require-complete").returncode == 0
    assert (place.out / f"{place.name}_vision.axmodel").read_bytes() == b"another"
    assert place.check().returncode == 0


FOREIGN = (
    *("config.json", "vocab.json", "preprocess.py", "check_board.py", "qwen2.5_tokenizer.txt"),
    *("manifest.json", "video168x168/config.json", "video168x168/post_config.json"),
)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("first", [True, False], ids=["before", "between"])
def test_what_is_not_ours_stays(place, name, first):
    """Whether it was there before the first package, or came, or was changed, between two."""
    place.build_all()
    if not first:
        assert place.package().returncode == 0
    (place.out / name).parent.mkdir(parents=True, exist_ok=True)
    (place.out / name).write_text('{"mine": true}')
    before = everything(place.out)
    refused(place.package(), 2, name, "would be replaced", "move it away")
    assert everything(place.out) == before
    (place.out / name).unlink()
    assert place.package().returncode == 0 and place.package().returncode == 0


def test_another_checkpoint_stays(place, model, tmp_path, run_script):
    """As OUT, above it, through a link, in the hub's cache; and as the work directory of a step."""
    other = Path(shutil.copytree(model, tmp_path / "other"))
    (tmp_path / "link").symlink_to(other)
    cached = tmp_path / "models--Qwen--X" / "snapshots" / "0123"
    cached.mkdir(parents=True)
    before = everything(other)
    for out in (other, other / "out", tmp_path / "link", tmp_path / "link" / "out", cached.parent / "out"):
        place.out = out
        refused(place.package(), 2, "give it a place of its own")
        refused(run_script("extract_embedding.py", model, out), 2, "give it a place of its own")
        for script in ("make_report.py", "preflight.py"):
            refused(run_script(script, model, "--workdir", out if out.exists() else other), 2, "of its own")
        refused(run_script("export.py", model, "image", "--workdir", out), 2, "give it a place of its own")
    assert everything(other) == before and not list(cached.parent.glob("out"))


def test_embeddings_that_are_not_ours_stay(place, model, run_script):
    place.out.mkdir()
    path = place.out / "model.embed_tokens.weight.bfloat16.bin"
    path.write_bytes(b"another model's")
    refused(run_script("extract_embedding.py", model, place.out), 2, path.name, "would be replaced")
    assert path.read_bytes() == b"another model's" and len(list(place.out.iterdir())) == 1
    path.unlink()
    for _ in range(2):
        assert run_script("extract_embedding.py", model, place.out).returncode == 0
    assert place.package().returncode == 0
    # Of an earlier package that this project made of other weights: known by its manifest.
    path.write_bytes(b"of other weights")
    entry = {"bytes": 16, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    edit_manifest(place.out, lambda m: [one.update(entry) for one in m["files"] if one["path"] == path.name])
    assert run_script("extract_embedding.py", model, place.out).returncode == 0
    assert path.stat().st_size == 2 * 512 * 48


@pytest.mark.parametrize("name", ["trainer_state.json", "adapter_notes.json", "model.safetensors.index.json"])
def test_only_what_a_model_needs_is_packed(place, model, tmp_path, name):
    trained = Path(shutil.copytree(model, tmp_path / "trained"))
    (trained / "trainer_state.json").write_text('{"loss": NaN}' + " " * (33 << 20))
    (trained / "adapter_notes.json").mkdir()
    assert place.package(ckpt=trained).returncode == 0
    assert not (place.out / name).exists()


def test_hub_cache_links_are_followed(place, model, tmp_path):
    cache, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    cache.mkdir()
    snapshot.mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        shutil.copy(path, cache / str(number))
        (snapshot / path.name).symlink_to(cache / str(number))
    assert place.package(ckpt=snapshot).returncode == 0
    assert not any(path.is_symlink() for path in place.out.rglob("*"))
    assert (place.out / "config.json").read_bytes() == (model / "config.json").read_bytes()
    (snapshot / "preprocessor_config.json").unlink()
    (snapshot / "preprocessor_config.json").symlink_to(cache / "gone")
    refused(place.package(ckpt=snapshot), 2, "preprocessor_config.json")


def test_without_a_tokenizer(place, model, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in [*model.glob("*.safetensors"), model / "config.json", model / "model.safetensors.index.json"]:
        shutil.copy(path, bare)
    assert place.package(ckpt=bare).returncode == 0
    assert "tokenizer.json" in place.manifest()["missing"]
    (bare / "tokenizer.json").write_text("{}")
    refused(place.package(ckpt=bare), 2, "tokenizer.json")


def test_bad_directories(place, model, tmp_path, run_script):
    refused(run_script("package_model.py", model, model, "--workdir", place.work), 2, "checkpoint itself")
    refused(run_script("package_model.py", model, model / "config.json"), 2, "within the checkpoint")
    refused(run_script("package_model.py", model, ROOT / "README.md"), 2, "found a file")
    refused(run_script("package_model.py", model, place.out, "--workdir", tmp_path / "absent"), 2, "absent")
    refused(run_script("package_model.py", tmp_path / "absent", place.out), 2, "absent")
    refused(run_script("package_model.py", model), 2, "OUT_DIR")
    refused(run_script("package_model.py", model, place.out, "--check", place.out), 2, "--check")
    assert not place.out.exists()


def test_a_capture_that_is_no_capture(place, model):
    place.build_all()
    (place.work / "capture.json").write_text("{")
    refused(place.package(), 2, "capture.json")
    write_capture(place.work)
    text = (place.work / "capture.json").read_text()
    (place.work / "capture.json").write_text(text.replace('"sample_fps": 4.0', '"sample_fps": -1.0'))
    refused(place.package(), 2, "sample_fps")
    for change in ({"size": ("a", "b")}, {"size": (168,)}, {"size": (196, 168)}, {"indices": 3}):
        value = asdict(capture()) | change
        (place.work / "capture.json").write_text(json.dumps(value))
        refused(place.package(), 2, "run_video_by_sec.py")
    (place.work / "capture.json").unlink()
    refused(place.package(), 2, "run_video_by_sec.py")


def test_warnings(place):
    write_capture(place.work, fps=0.4)
    place.out = place.out.with_name("50% out")
    place.build_all()
    assert place.package().returncode == 0
    write_capture(place.work, fps=0.4, size=(140, 252))
    done = place.package()
    assert "'%'" in done.stdout
    assert "video168x168/ is left" in done.stdout


# Checking a copy


@pytest.fixture(scope="session")
def complete(tmp_path_factory, model, run_script) -> Path:
    root = tmp_path_factory.mktemp("complete")
    write_capture(root)
    out = root / "包 裹"
    build_layers(out)
    (out / f"{model.name}_vision.axmodel").write_bytes(b"vision")
    done = run_script("package_model.py", model, out, "--workdir", root, "--require-complete")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def copy(complete, tmp_path) -> Path:
    return Path(shutil.copytree(complete, tmp_path / "on the board 板"))


def check_on_board(directory: Path, *flags: str) -> subprocess.CompletedProcess:
    """The copied script, with the standard library alone: no site packages, no project beside it."""
    command = [sys.executable, "-I", "-S", str(directory / "package_model.py"), "--check", ".", *flags]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)


def test_a_good_copy(copy, run_script):
    for done in (check_on_board(copy, "--require-complete"), run_script("package_model.py", "--check", copy)):
        assert done.returncode == 0, done.stdout + done.stderr
        assert "as the manifest says" in done.stdout


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def directory_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "flipped bit": (flip, "wrong content"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 1), "wrong size"),
    "grown": (lambda path: path.write_bytes(path.read_bytes() + b"\n"), "wrong size"),
    "absent": (Path.unlink, "missing"),
    "directory": (directory_instead, "missing"),
}
FILES = (
    "qwen2_5_vl_p512_l1_together.axmodel",
    "model.embed_tokens.weight.bfloat16.bin",
    "video168x168/config.json",
    "qwen2.5_tokenizer.txt",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy(copy, name, damage):
    change, words = DAMAGES[damage]
    change(copy / name)
    done = check_on_board(copy)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{words}: {name}")
    assert done.stderr == ""


def test_all_damages_are_listed(copy):
    for name in FILES:
        flip(copy / name)
    done = check_on_board(copy)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == len(FILES)


def edit_manifest(directory: Path, change) -> None:
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("field", ["bytes", "sha256"])
def test_a_tampered_manifest(copy, field):
    def tamper(manifest):
        entry = manifest["files"][3]
        entry[field] = entry[field] + 1 if field == "bytes" else "0" * 64

    edit_manifest(copy, tamper)
    assert check_on_board(copy).returncode == 1


OUTSIDE = ("../secret", "/etc/hostname", "a/../../secret", "..", "", ".", "a\0b", 7, None, "\ud800")


@pytest.mark.parametrize("path", OUTSIDE, ids=range(len(OUTSIDE)))
def test_paths_that_leave_the_directory(copy, path):
    (copy.parent / "secret").write_bytes(b"")
    entry = {"path": path, "bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    edit_manifest(copy, lambda manifest: manifest["files"].append(entry))
    refused(check_on_board(copy), 2, "manifest.json")


UNUSABLE = (
    "",
    "[]",
    "{}",
    "null",
    '{"files": 1}',
    '{"files": [1], "missing": []}',
    '{"files": [{"path": "a"}], "missing": []}',
    '{"files": [{"path": "a", "bytes": "1", "sha256": ""}], "missing": []}',
    "[" * 100_000,
    "\udcff",
)


@pytest.mark.parametrize("content", UNUSABLE, ids=range(len(UNUSABLE)))
def test_an_unusable_manifest(copy, content):
    (copy / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    refused(check_on_board(copy), 2, "manifest.json")


@pytest.mark.parametrize(
    "change",
    [
        *({"format": 2}, {"format": True}, {"missing": "abc"}, {"missing": [{}]}, {"filler": "x" * (1 << 24)}),
        *({"complete": False}, {"complete": 1}, {"missing": ["a"]}, {"surplus": 1}, {"checkpoint": None}),
        {"files": [{"path": "a", "bytes": 1 << 40, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "bytes": True, "sha256": "0" * 64}]},
        {"files": [{"path": "a//b", "bytes": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "bytes": 1, "sha256": "0" * 64}] * 2},
    ],
    ids=lambda c: str(c)[:50],
)
def test_a_manifest_of_another_kind(copy, change):
    edit_manifest(copy, lambda manifest: manifest.update(change))
    refused(check_on_board(copy), 2, "manifest.json")


def test_keys_that_are_given_twice(copy):
    """The second list of files would hide the first one's."""
    path = copy / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").rstrip()[:-1] + ', "files": []}', encoding="utf-8")
    refused(check_on_board(copy), 2, "manifest.json", "twice")


def test_a_file_of_a_terabyte_is_refused_by_its_size(place):
    assert place.package().returncode == 0
    with (place.out / "mine.bin").open("wb") as file:
        file.truncate(1 << 40)
    refused(place.package(), 2, "mine.bin", "more than any file")


def test_nothing_that_is_said_steers_the_terminal(copy):
    hostile = "a\x1b[2J\u202e\u732b"
    unbuilt = {"complete": False, "missing": [hostile]}
    entry = {"path": hostile, "bytes": 0, "sha256": ""}
    edit_manifest(copy, lambda manifest: (manifest["files"].append(entry), manifest.update(unbuilt)))
    (copy / f"{hostile}.AXMODEL").touch()
    (copy / "linked").symlink_to(copy.parent)
    done = check_on_board(copy)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and not [c for c in said if ord(c) < 32 and c != "\n"] and "\u202e" not in said
    assert "not in the manifest: a\\x1b[2J\\u202e\u732b.AXMODEL" in said and "not in the manifest: linked" in said
    done = check_on_board(copy, "--b\x1bad")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "\x1b" not in done.stderr


def test_no_manifest_and_an_empty_one(copy):
    edit_manifest(copy, lambda manifest: manifest.update(files=[]))
    assert check_on_board(copy).returncode == 1
    (copy / "manifest.json").unlink()
    refused(check_on_board(copy), 2, "manifest.json")


def test_on_the_board_only_the_check_works(copy):
    command = [sys.executable, "-I", "-S", str(copy / "package_model.py"), "a", "b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "only --check" in done.stderr
    assert (copy / "package_model.py").read_bytes() == (ROOT / "package_model.py").read_bytes()


FOREIGN_MODULES = ("json.py", "argparse.py", "hashlib.py", "qwen_vl_axera/cli.py", "qwen_vl_axera/__init__.py")


@pytest.mark.parametrize("argv", [["package_model.py", "--check", "."], ["check_board.py", "--print"]], ids=str)
@pytest.mark.parametrize("here", [True, False])
def test_modules_beside_a_packed_script_are_not_run(copy, argv, here):
    (copy / "check").mkdir()
    (copy / "qwen_vl_axera").mkdir()
    for name in FOREIGN_MODULES:
        (copy / name).write_text(f"raise SystemExit('{name} was run')")
    script = [argv[0] if here else str(copy / argv[0]), *argv[1:-1], str(copy) if argv[-1] == "." else argv[-1]]
    done = subprocess.run([sys.executable, *script], cwd=copy if here else None, capture_output=True, text=True)
    assert "was run" not in done.stdout + done.stderr
    assert done.returncode == (0 if argv[0] == "package_model.py" else 2), done.stderr


@pytest.mark.parametrize("damaged", [True, False])
def test_a_reader_that_leaves_changes_no_verdict(copy, damaged):
    if damaged:
        for path in copy.glob("*.json"):
            if path.name != "manifest.json":
                path.write_bytes(b"")
    process = subprocess.Popen(
        [sys.executable, ROOT / "package_model.py", "--check", copy], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 1 if damaged else 0)
