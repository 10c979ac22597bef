"""transformers' language model, filled from the safetensors files that were checked, and from nothing else.

`from_pretrained` would choose by itself: a pickle beside the weights, attention code from a hub when config.json names
some, a class that `auto_map` names. Here a checkpoint is data.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vl_axera import progress
from qwen_vl_axera.checkpoint.expected import text_tensors
from qwen_vl_axera.checkpoint.tensors import FLOAT_DTYPES, Checkpoint, TensorInfo, normalise_name, read_bytes
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.files import read_json
from qwen_vl_axera.memory import check_memory

ATTENTION = "sdpa"  # PyTorch's own


def load_language_model(checkpoint: Checkpoint, dtype: str, device: str):
    """Qwen2.5-VL without its vision tower, ready to run.

    Args:
        checkpoint: where the weights are.
        dtype: "bfloat16" or "float32".
        device: "cpu", "cuda", ...

    Raises:
        InputError: config.json describes none, a tensor is missing, of another shape or no float, a value is NaN or
            infinite, or the model doesn't fit the memory.
    """
    import torch

    check_language(checkpoint)
    checkpoint.check_counts()
    expected = text_tensors(checkpoint.config.text, checkpoint.tower)
    checkpoint.check_shapes(expected)
    target = getattr(torch, dtype)
    size = target.itemsize * sum(math.prod(shape) for shape in expected.values())
    check_memory(size, f"{checkpoint.directory}: the language model in {dtype}")
    model = _empty_model(checkpoint)
    with progress.stage("load language model", size) as stage:
        for name, parameter in list(model.named_parameters()):
            if parameter.is_meta:
                values = torch_tensor(checkpoint.info(normalise_name(name)), checkpoint).to(target)
                owner, _, kind = name.rpartition(".")
                setattr(model.get_submodule(owner), kind, torch.nn.Parameter(values, requires_grad=False))
                stage.advance(values.nbytes)
    if checkpoint.config.text.tie_word_embeddings:
        model.lm_head.weight = model.get_input_embeddings().weight
    return model.to(device).eval()


def check_language(checkpoint: Checkpoint) -> None:
    """That the language model is stored as one that runs here.

    Raises:
        InputError: it is quantised, or none that is known.
    """
    if not checkpoint.tower.text:
        raise InputError(
            f"{checkpoint.directory}: {checkpoint.tower.name} does not generate text here yet: leave out --generate"
        )
    if method := checkpoint.quantization:
        raise InputError(
            f"{checkpoint.directory}: quantised with {method}, which does not run here: let the original checkpoint "
            "answer, test_onnx_video_by_sec.py --generate --language ORIGINAL"
        )


def _empty_model(checkpoint: Checkpoint):
    """The model without memory for its weights; what is no weight is computed."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    try:
        config = Qwen2_5_VLConfig.from_pretrained(checkpoint.directory, local_files_only=True)
        tied = checkpoint.config.text.tie_word_embeddings
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = tied
        with torch.device("meta"):
            model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=ATTENTION)
        owner = model.model if hasattr(model.model, "visual") else model
        owner.visual = None  # the features come from elsewhere
        if checkpoint.config.text.tie_word_embeddings:
            model.lm_head.weight = model.get_input_embeddings().weight
        for name, module in list(model.named_modules()):
            if any(buffer.is_meta for buffer in module.buffers(recurse=False)):  # rotary frequencies
                parent, _, kind = name.rpartition(".")
                setattr(model.get_submodule(parent), kind, type(module)(config=module.config))
    except Exception as error:  # whatever a hostile configuration leads to
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        path = checkpoint.directory / "config.json"
        raise InputError(f"{path}: transformers makes no language model of it ({reason[:200]})") from None
    return model


def torch_tensor(info: TensorInfo, checkpoint: Checkpoint) -> Any:
    """A tensor as it is stored.

    Raises:
        InputError: it is no float, or holds NaN or infinities.
    """
    import torch

    if info.dtype not in FLOAT_DTYPES:
        raise InputError(f"{info.path}: {info.stored_name} is stored as {info.dtype}, expected BF16, F16 or F32")
    stored = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[info.dtype]
    values = np.empty(info.nbytes, np.uint8)
    done = 0
    for data in read_bytes(info):
        piece = torch.frombuffer(bytearray(data), dtype=stored)
        if not bool(torch.isfinite(piece).all()):
            raise InputError(f"{info.path}: {info.stored_name} holds NaN or infinite values")
        values[done : done + len(data)] = np.frombuffer(data, np.uint8)
        done += len(data)
    return torch.from_numpy(values).view(stored).reshape(info.shape)


def stop_ids(directory: Path, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: generation_config.json's, or config.json's, or the tokenizer's.

    Raises:
        InputError: a file names something else than numbers.
    """
    for path in (directory / "generation_config.json", directory / "config.json"):
        if path.exists():
            raw = read_json(path)
            found = raw.get("eos_token_id") if isinstance(raw, dict) else None
            if found is not None:
                ids = found if isinstance(found, list) else [found]
                if any(type(number) is not int for number in ids):
                    raise InputError(f"{path}: eos_token_id is {str(found)[:40]}, expected token numbers")
                return set(ids)
    return {tokenizer.eos_token_id}
