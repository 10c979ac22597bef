"""The board runtime's own two configuration files, one pair per vision model.

They stand in a directory of their own beside the hub's files, whose `config.json` would otherwise have the same
name. Keys and accepted values are those of `axllm`; docs/board.md says which of them were never run on a board.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_vl_axera.board.sizes import misreading
from qwen_vl_axera.board.timing import TimeSettings
from qwen_vl_axera.board.tokenizer import MERGES_FILE
from qwen_vl_axera.checkpoint.config import ModelConfig
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import CAPTURE, EMBEDDING_FILES, IMAGE_SIZE, layer_file, post_file
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_json, write_json
from qwen_vl_axera.language.chat import processor_template
from qwen_vl_axera.language.template import TemplateError, render
from qwen_vl_axera.oracle.record import Capture, read_capture
from qwen_vl_axera.towers import find_tower

SYSTEM_PROMPT = "You are a helpful assistant."  # of the released chat template
# All nine must be there or the runtime aborts. Nothing enabled: greedy, as everything here is checked.
POST_CONFIG = {
    "enable_temperature": False,
    "temperature": 1.0,
    "enable_repetition_penalty": False,
    "repetition_penalty": 1.0,
    "penalty_window": 20,
    "enable_top_p_sampling": False,
    "top_p": 1.0,
    "enable_top_k_sampling": False,
    "top_k": 1,
}


@dataclass(frozen=True)
class VisionModel:
    """A compiled vision model: its file's name without the ending, what for, and its size in pixels."""

    stem: str
    mode: str
    size: tuple[int, int]

    @property
    def file(self) -> str:
        return f"{self.stem}.axmodel"

    @property
    def directory(self) -> str:
        """Where its configuration stands: video308x308, image448x448."""
        return f"{self.mode}{self.size[0]}x{self.size[1]}"


def runtime_config(
    name: str, config: ModelConfig, vision: VisionModel, prefill_len: int, time: TimeSettings, system: str
) -> dict[str, Any]:
    """`config.json` of the runtime. Paths that begin with `../` are taken from the file's own directory.

    Args:
        name: of the model.
        config: the checkpoint's.
        vision: the vision model that this directory is for.
        prefill_len: part of the layers' names.
        time: what places a clip's steps on the time axis.
        system: of `system_prompt`.
    """
    board = find_tower(config.model_type).board
    return {
        "model_name": name,
        "tokenizer_type": board.tokenizer_type,
        "vlm_type": board.vlm_type,
        "url_tokenizer_model": f"../{MERGES_FILE}",
        "template_filename_axmodel": "../" + layer_file(board.layers, prefill_len, "%d"),
        "axmodel_num": config.text.num_hidden_layers,
        "filename_post_axmodel": f"../{post_file(board.layers)}",
        "filename_tokens_embed": f"../{EMBEDDING_FILES['bfloat16']}",
        "tokens_embed_num": config.text.vocab_size,
        "tokens_embed_size": config.text.hidden_size,
        "filename_image_encoder_axmodel": f"../{vision.file}",
        "vision_height": vision.size[0],
        "vision_width": vision.size[1],
        "vision_patch_size": config.vision.patch_size,
        "vision_temporal_patch_size": config.vision.temporal_patch_size,
        "vision_spatial_merge_size": config.vision.spatial_merge_size,
        "vision_fps": time.fps,
        "vision_tokens_per_second": time.tokens_per_second,
        "system_prompt": system,
        "post_config_path": "post_config.json",
        "use_mmap_load_embed": True,
        "use_mmap_load_layer": True,
        "devices": [0],
        "sliding_window": 0,
    }


def system_prompt(directory: Path) -> str:
    """What the checkpoint's own chat template says before the first message; the released one's where it has none.

    Raises:
        InputError: a file is unreadable, or the template takes more than any real one.
    """
    template = processor_template(directory)
    path = directory / "tokenizer_config.json"
    raw = read_json(path) if template is None and path.exists() else {}
    template = template or (raw.get("chat_template") if isinstance(raw, dict) else None)
    if not isinstance(template, str):
        return SYSTEM_PROMPT
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}]
    try:
        text = render(template, {"messages": messages, "add_generation_prompt": True}, directory)
    except TemplateError:
        return SYSTEM_PROMPT
    found = re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", text, re.DOTALL)
    return found[1] if found else ""


def write_settings(
    checkpoint: Checkpoint, directory: Path, models: list[VisionModel], prefill_len: int, time: TimeSettings
) -> list[str]:
    """Writes each vision model's two files into OUT, `directory`, and returns their paths under it."""
    names, system = [], system_prompt(checkpoint.directory) if models else ""
    for model in models:
        (directory / model.directory).mkdir(exist_ok=True)
        config = runtime_config(checkpoint.name, checkpoint.config, model, prefill_len, time, system)
        for name, content in (("config.json", config), ("post_config.json", POST_CONFIG)):
            write_json(directory / model.directory / name, content)
            names.append(f"{model.directory}/{name}")
    return names


def find_capture(workdir: Path) -> Capture | None:
    """The capture in a work directory, or None when there is none."""
    return read_capture(workdir) if (Path(workdir) / CAPTURE).is_file() else None


def find_vision_models(name: str, directories: list[Path], workdir: Path) -> list[VisionModel]:
    """The vision models that are compiled or about to be, from file names in some directories.

    NAME_vision[_image][_HxW] with .axmodel, or .onnx before it is compiled. Without a size in the name it is the
    graph's, or else the captured one.

    Raises:
        InputError: a graph or capture.json is unusable, or the runtime would misread a model's size.
    """
    pattern = re.compile(re.escape(name) + r"_vision(_image)?(?:_(\d+)x(\d+))?\.(axmodel|onnx)")
    found: dict[str, re.Match] = {}
    for directory in directories:
        entries = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
        for match in filter(None, map(pattern.fullmatch, entries)):
            found.setdefault(match.string.rpartition(".")[0], match)
    models: dict[str, VisionModel] = {}
    # Two names for one size (an export of one size, then of several): the compiled one, else the plain one.
    for stem, match in sorted(found.items(), key=lambda item: (item[1][4] != "axmodel", item[0])):
        mode = "image" if match[1] else "video"
        size = (int(match[2]), int(match[3])) if match[2] else _unnamed_size(workdir, stem, mode)
        model = VisionModel(stem, mode, size)
        models.setdefault(model.directory, model)
    for model in models.values():
        if problem := misreading(model.size):
            raise InputError(f"{model.stem}: {problem}; build one of those, and remove this one's files")
    return sorted(models.values(), key=lambda model: model.stem)


def _unnamed_size(workdir: Path, stem: str, mode: str) -> tuple[int, int]:
    graph = Path(workdir) / f"{stem}.onnx"
    if graph.is_file():
        from qwen_vl_axera.graph.files import load_graph, read_spec

        return read_spec(load_graph(graph), graph).size
    return IMAGE_SIZE if mode == "image" else read_capture(workdir).size
