"""Step 6: the directory that goes to the board.

OUT/                 the hub's JSON and tokenizer files, embeddings, axmodels, the runtime's tokenizer files,
                     preprocess.py, package_model.py (its --check), check_board.py, manifest.json
OUT/video308x308/    the runtime's own config.json and post_config.json, one directory per vision model:
                     what `axllm run` is pointed at
OUT/check/           the captured frames and what the host said about them: what check_board.py asks the board
"""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from package_model import FILE_BYTES, read_manifest
from qwen_vl_axera import progress
from qwen_vl_axera.board import settings
from qwen_vl_axera.board.clip import CHECK, write_clip
from qwen_vl_axera.board.settings import VisionModel
from qwen_vl_axera.board.timing import TimeSettings, time_settings
from qwen_vl_axera.board.tokenizer import write_board_tokenizers
from qwen_vl_axera.checkpoint.embedding import PIECE, converted, embedding_info, extract_embedding
from qwen_vl_axera.checkpoint.tensors import MODEL_FILES, Checkpoint
from qwen_vl_axera.contract import BUILD_OUTPUT, EMBEDDING_FILES, PREFILL_LEN, graph_stem, layer_file, post_file
from qwen_vl_axera.doors import check_file, open_file
from qwen_vl_axera.errors import CheckFailed, InputError
from qwen_vl_axera.files import atomic_write, check_out, sha256_file, write_json
from qwen_vl_axera.graph.files import is_cut_off
from qwen_vl_axera.swap import Staging, set_aside, staged

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
SCRIPTS = ("preprocess.py", "package_model.py", "check_board.py")  # they run on the board as they are


@dataclass(frozen=True)
class Part:
    """One row of the table: files that belong together.

    Attributes:
        name: what they are.
        files: those that are there, as paths under OUT.
        missing: those that are not.
        remedy: the command that makes them.
    """

    name: str
    files: list[str]
    missing: list[str] = field(default_factory=list)
    remedy: str = ""


@dataclass(frozen=True)
class Package:
    """An assembled directory: its parts, its warnings, and `manifest.json`'s content."""

    directory: Path
    parts: list[Part]
    warnings: list[str]
    manifest: dict

    @property
    def missing(self) -> list[str]:
        return self.manifest["missing"]


def assemble(checkpoint: Checkpoint, directory: Path, workdir: Path, prefill_len: int | None = None) -> Package:
    """Copies and writes what the host can make, counts what the NPU compiler makes, and writes the manifest.

    Everything is written aside and checked before the first file gets its name: until then OUT is what it was.

    Args:
        checkpoint: the model.
        directory: OUT; made when missing. `pulsar2 llm_build` writes its layers there.
        workdir: where the graphs, capture.json and build-output/ are.
        prefill_len: which layers belong to the package; needed only where two builds lie side by side.

    Returns:
        The package. Missing parts are listed, not raised: before the compiler has run they are expected.

    Raises:
        InputError: a directory or a file of the checkpoint is unusable, or the layers are ambiguous.
        CheckFailed: a part that is there is wrong: empty, of another size, or of another model.
    """
    directory, workdir = Path(directory), Path(workdir)
    checkpoint.check_counts()
    check_out(checkpoint.directory, directory)
    if not workdir.is_dir():
        raise InputError(f"--workdir {workdir}: no such directory; expected the one that export.py wrote to")
    if prefill_len is not None and prefill_len < 1:
        raise InputError(f"--prefill-len {prefill_len}: expected a positive number")
    build_output = workdir / BUILD_OUTPUT
    models = settings.find_vision_models(checkpoint.name, [directory, build_output, workdir], workdir)
    _check_links(directory, [CHECK, *(model.directory for model in models)])
    directory.mkdir(parents=True, exist_ok=True)
    prefix = checkpoint.tower.board.layers
    prefill_len, layers = _layers(directory, prefix, checkpoint.config.text.num_hidden_layers, prefill_len)

    with staged(directory, MANIFEST, made_before(directory)) as staging:
        new = staging.directory
        parts = [Part("hub files", _copy_hub_files(checkpoint.directory, new)), _tokenizer(checkpoint, new)]
        if not (directory / EMBEDDING_FILES["bfloat16"]).is_file():
            extract_embedding(checkpoint, new)
        parts.append(Part("embeddings", [EMBEDDING_FILES["bfloat16"]]))
        parts += [_vision(model, staging, build_output) for model in models]
        if not models:
            name = f"{graph_stem(checkpoint.name, 'video')}.axmodel"
            parts.append(Part("vision", [], [name], "export.py, then pulsar2 build"))
        post = _present(directory, "post", [post_file(prefix)], "pulsar2 llm_build")
        capture = settings.find_capture(workdir)
        time = time_settings(capture, checkpoint.config.vision.tokens_per_second)
        names = settings.write_settings(checkpoint, new, models, prefill_len, time)
        clip = write_clip(checkpoint, staging, workdir, capture, models)
        parts += [layers, post, Part("runtime's settings", names), Part("frames and answers", clip.files)]
        for name in SCRIPTS:
            copy_file(Path(__file__).resolve().parents[2] / name, new / name)
        parts.append(Part("scripts", list(SCRIPTS)))

        warnings = _warnings(directory, models, time) + clip.warnings
        missing = sorted(name for part in parts for name in part.missing)
        files = _hash_files(staging, leave_out={checkpoint.directory.resolve(), workdir.resolve()})
        _check_embedding(checkpoint, directory, files)
        manifest = {
            "format": MANIFEST_FORMAT,
            "checkpoint": checkpoint.name,
            "complete": not missing,
            "missing": missing,
            "files": files,
        }
        write_json(new / MANIFEST, manifest)
    return Package(directory, parts, warnings, manifest)


def made_before(directory: Path) -> dict[str, str]:
    """Name -> SHA-256 of what an earlier run put into OUT, by its manifest.

    Raises:
        InputError: the manifest there is another program's, or damaged.
    """
    path = directory / MANIFEST
    if not os.path.lexists(path):
        path = set_aside(path)  # of a run that was killed while its files got their names
    if not os.path.lexists(path):
        return {}
    try:
        entries, _ = read_manifest(check_file(path))
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise InputError(
            f"{path}: would be replaced, and is no manifest of a package ({reason}): move it away"
        ) from None
    return {name: digest for name, _, digest in entries}


def _check_links(directory: Path, names: list[str]) -> None:
    for name in names:
        if (directory / name).is_symlink():
            raise InputError(f"{directory / name} is a link, through which the runtime does not find ../: remove it")


def _copy_hub_files(source: Path, directory: Path) -> list[str]:
    names = [name for name in MODEL_FILES if os.path.lexists(source / name)]
    for name in names:
        copy_file(source / name, directory / name)
    return names


def copy_file(source: Path, target: Path) -> None:
    """Copies a file's content, atomically; links are followed (a hub cache consists of them).

    Raises:
        InputError: the source is missing or a link to nothing.
    """
    check_file(source)
    size = source.stat().st_size
    with (
        progress.stage(f"copy {source.name}", size) as stage,
        open_file(source, buffering=0) as file,
        atomic_write(target) as output,
    ):
        while data := file.read(PIECE):
            output.write(data)
            stage.advance(len(data))


def _tokenizer(checkpoint: Checkpoint, directory: Path) -> Part:
    source = checkpoint.directory / "tokenizer.json"
    if not source.exists():
        return Part("tokenizer", [], ["tokenizer.json"], "download it into the checkpoint's directory")
    paths = write_board_tokenizers(source, directory, checkpoint.config.text.vocab_size)
    return Part("tokenizer", [path.name for path in paths])


def _layers(directory: Path, prefix: str, count: int, prefill_len: int | None) -> tuple[int, Part]:
    """The prefill length that the layers' names carry, and the layers."""
    pattern = re.compile(layer_file(prefix, r"(\d+)", r"(\d+)").replace(".", r"\."))
    builds: dict[int, set[int]] = {}
    for match in filter(None, (pattern.fullmatch(path.name) for path in directory.iterdir())):
        builds.setdefault(int(match[1]), set()).add(int(match[2]))
    if prefill_len is None and len(builds) > 1:
        found = ", ".join(f"{length} ({len(numbers)} layers)" for length, numbers in sorted(builds.items()))
        raise InputError(f"{directory}: layers of several builds, prefill {found}: choose with --prefill-len")
    prefill_len = prefill_len or next(iter(builds), PREFILL_LEN)
    highest = max(builds.get(prefill_len, {0}))
    if highest >= count:
        raise CheckFailed(
            f"{directory / layer_file(prefix, prefill_len, highest)}: config.json has {count} layers (0 to "
            f"{count - 1}): the layers are another model's; build them again into an empty directory"
        )
    names = [layer_file(prefix, prefill_len, number) for number in range(count)]
    return prefill_len, _present(directory, f"layers p{prefill_len}", names, "pulsar2 llm_build")


def _present(directory: Path, name: str, files: list[str], remedy: str) -> Part:
    there = [file for file in files if (directory / file).is_file()]
    for file in there:
        if not (directory / file).stat().st_size:
            raise CheckFailed(f"{directory / file} is empty: run {remedy} again")
        if is_cut_off(directory / file):
            raise CheckFailed(f"{directory / file} is cut off in the middle: remove it and run {remedy} again")
    return Part(name, there, [file for file in files if file not in there], remedy)


def _vision(model: VisionModel, staging: Staging, build_output: Path) -> Part:
    built, place = build_output / model.file, staging.target
    if built.is_file() and not ((place / model.file).exists() and built.samefile(place / model.file)):
        copy_file(built, staging.directory / model.file)
        place = staging.directory
    return _present(place, f"vision {model.directory}", [model.file], "pulsar2 build")


def _warnings(directory: Path, models: list[VisionModel], time: TimeSettings) -> list[str]:
    warnings = [time.warning] if time.warning and any(model.mode == "video" for model in models) else []
    if "%" in str(directory.resolve()):
        warnings.append("the path holds a '%', which the runtime takes for a format: choose another on the board")
    known = {model.directory for model in models}
    for path in sorted(directory.glob("*/config.json")):
        if re.fullmatch(r"(video|image)\d+x\d+", path.parent.name) and path.parent.name not in known:
            warnings.append(f"{path.parent.name}/ is left from an earlier run: no vision model of that size is known")
    return warnings


def _hash_files(staging: Staging, leave_out: set[Path]) -> list[dict]:
    """Path, size and SHA-256 of every file that the directory will have, sorted; manifest and hidden files excepted.

    Args:
        staging: the directory and what comes into it.
        leave_out: directories that may lie within it but are no part of it.
    """
    directory, paths = staging.target, []
    for folder, folders, names in os.walk(directory):
        hidden_or_other = {n for n in folders if n.startswith(".") or (Path(folder) / n).resolve() in leave_out}
        folders[:] = sorted(set(folders) - hidden_or_other - {"__pycache__"})
        paths += [p for name in names if not name.startswith(".") and (p := Path(folder) / name).is_file()]
    relative = {path.relative_to(directory).as_posix(): path for path in paths if path != directory / MANIFEST}
    relative = {name: path for name, path in relative.items() if name not in staging.gone} | staging.files()
    entries = []
    with progress.stage("checksums", sum(path.stat().st_size for path in relative.values())) as stage:
        for name, path in sorted(relative.items()):
            try:
                name.encode("utf-8")
            except UnicodeEncodeError:
                raise InputError(f"{directory}: the file name {name!a} is no UTF-8: rename or remove it") from None
            size = path.stat().st_size
            if size > FILE_BYTES:
                raise InputError(f"{path}: {size} bytes, more than any file of a package has: remove it")
            entries.append({"path": name, "bytes": size, "sha256": sha256_file(path)})
            stage.advance(size)
    return entries


def _check_embedding(checkpoint: Checkpoint, directory: Path, files: list[dict]) -> None:
    """That the embeddings have the right size and are this checkpoint's.

    Raises:
        CheckFailed: they are not.
    """
    name = EMBEDDING_FILES["bfloat16"]
    info = embedding_info(checkpoint)
    entry = next(entry for entry in files if entry["path"] == name)
    rows, columns = info.shape
    remedy = f"remove it and run extract_embedding.py {checkpoint.directory} {directory}"
    if entry["bytes"] != 2 * rows * columns:
        raise CheckFailed(
            f"{directory / name}: {entry['bytes']} bytes, "
            f"{rows} x {columns} bfloat16 need {2 * rows * columns}: {remedy}"
        )
    digest = hashlib.sha256()
    with progress.stage("compare embeddings", info.nbytes) as stage:
        for stored, piece in converted(info, "bfloat16"):
            digest.update(piece)
            stage.advance(stored)
    if digest.hexdigest() != entry["sha256"]:
        raise CheckFailed(f"{directory / name} is of the right size but not this checkpoint's: {remedy}")


def print_table(package: Package) -> None:
    """Prints the parts, what is missing and how to make it, and the warnings."""
    sizes = {entry["path"]: entry["bytes"] for entry in package.manifest["files"]}
    for part in package.parts:
        total = sum(sizes[name] for name in part.files)
        line = f"{part.name:<20} {len(part.files):>3} of {len(part.files) + len(part.missing):<3} {total:>14,} B"
        if part.missing:
            more = f" and {len(part.missing) - 1} more" if len(part.missing) > 1 else ""
            line += f"  missing: {part.missing[0]}{more} ({part.remedy})"
        print(line)
    for warning in package.warnings:
        print(f"warning: {warning}")
    state = f"incomplete, {len(package.missing)} files missing" if package.missing else "complete"
    print(f"{package.directory / MANIFEST}: {len(sizes)} files, {sum(sizes.values()):,} bytes, {state}")
