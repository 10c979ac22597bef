"""Checkpoints as people have them: trained, wrapped, quantised, cached; taken, or named for what they are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_vl_axera.board.settings import SYSTEM_PROMPT, system_prompt
from qwen_vl_axera.checkpoint.config import load_config, model_name
from qwen_vl_axera.checkpoint.expected import check_vision
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.language.chat import LanguageModel, build_prompt, load_tokenizer
from qwen_vl_axera.preflight.checkpoint import PROCESSORS, checkpoint_checks
from tests.tiny import make_tiny

SHARD = "model-00001-of-00001.safetensors"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def copy(tiny_dir, tmp_path) -> Path:
    directory = Path(shutil.copytree(tiny_dir, tmp_path / "copy"))
    (directory / "model.safetensors.index.json").unlink()
    return directory


def edit(path: Path, change) -> None:
    raw = json.loads(path.read_text()) if path.exists() else {}
    change(raw)
    path.write_text(json.dumps(raw))


def edit_tensors(directory: Path, change) -> None:
    tensors = load_file(directory / SHARD)
    save_file(change(tensors), directory / SHARD, metadata={"format": "pt"})


def refused(directory: Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        check_vision(Checkpoint(directory))
    for word in words:
        assert word in str(error.value), error.value
    assert "\n" not in str(error.value)


# config.json


def test_class_defaults_are_taken_and_said(tmp_path):
    """As `save_pretrained` of transformers 4.49.0 leaves them out; stored shapes confirm them."""
    vision = {"depth": 32, "num_heads": 16, "hidden_size": 64, "intermediate_size": 3420}
    directory = make_tiny(tmp_path / "ckpt", vision)
    left_out = ("depth", "num_heads", "intermediate_size", "fullatt_block_indexes", "window_size", "patch_size")
    expected = load_config(directory).vision
    edit(directory / "config.json", lambda raw: [raw["vision_config"].pop(name, None) for name in left_out])
    checkpoint = Checkpoint(directory)
    check_vision(checkpoint)
    found = checkpoint.config.vision
    assert (found.depth, found.num_heads, found.intermediate_size) == (32, 16, 3420)
    assert found.fullatt_block_indexes == (7, 15, 23, 31)
    assert found.tokens_per_second == expected.tokens_per_second
    assert found.assumed == "depth 32, intermediate_size 3420, num_heads 16, fullatt_block_indexes [7, 15, 23, 31]"
    assert any(found.assumed in check.detail for check in checkpoint_checks(checkpoint) if check.status == "ok")
    edit(directory / "config.json", lambda raw: raw["vision_config"].pop("tokens_per_second"))
    edit(directory / "config.json", lambda raw: raw["vision_config"].pop("out_hidden_size"))
    found = load_config(directory).vision
    assert (found.tokens_per_second, found.out_hidden_size) == (4, 3584)
    refused(directory, "merger", "3584")


def test_blocks_that_config_json_does_not_know(copy):
    edit(copy / "config.json", lambda raw: raw["vision_config"].update(depth=3, fullatt_block_indexes=[2]))
    refused(copy, "3 vision blocks", "visual.blocks.3.")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_token_id": None}, ["image_token_id is null"]),
        ({"video_token_id": None}, ["video_token_id is null"]),
        ({"num_key_value_heads": 2}, ["3 attention heads", "num_key_value_heads 2"]),
        ({"num_key_value_heads": 5}, ["num_key_value_heads 5"]),
        ({"vision_config": {"fullatt_block_indexes": [True]}}, ["fullatt_block_indexes"]),
        ({"vision_config": {"depth": None}}, ["vision_config.depth is null"]),
    ],
)
def test_fields_of_another_kind(copy, fields, words):
    def change(raw):
        for name, value in fields.items():
            raw[name].update(value) if isinstance(value, dict) else raw.update({name: value})

    edit(copy / "config.json", change)
    refused(copy, "config.json", *words)


# names and places


def test_the_hubs_cache_and_hidden_names(copy, tmp_path, monkeypatch):
    cache = tmp_path / "hub" / "models--Qwen--Qwen2.5-VL-3B-Instruct"
    (cache / "snapshots").mkdir(parents=True)
    shutil.move(copy, cache / "snapshots" / "66285546d2b821cf421d4f5eb2576359d3770cd3")
    (snapshot,) = (cache / "snapshots").iterdir()
    assert Checkpoint(snapshot).name == model_name(snapshot) == "Qwen2.5-VL-3B-Instruct"
    (tmp_path / "link").symlink_to(snapshot)
    assert model_name(tmp_path / "link") == "Qwen2.5-VL-3B-Instruct"
    for place in (cache, cache.parent):
        refused(place, "the hub's cache", str(cache / "snapshots"))
    monkeypatch.chdir(tmp_path)
    refused(Path("Qwen/Qwen2.5-VL-3B-Instruct"), "hf download Qwen/Qwen2.5-VL-3B-Instruct")
    hidden = Path(shutil.copytree(snapshot, tmp_path / ".hidden"))
    with pytest.raises(InputError, match="rename it"):
        model_name(hidden)


# wrapped, adapted, quantised


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("base_model.model.", "merge the adapter first"),
        ("module.", "DataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("thinker.", "Qwen2.5-Omni"),
    ],
)
def test_prefixes_are_named_for_what_they_are(copy, prefix, words):
    edit_tensors(copy, lambda tensors: {prefix + name: values for name, values in tensors.items()})
    refused(copy, prefix, words)


@pytest.mark.parametrize("part", ["base_layer.weight", "lora_A.default.weight", "lora_B.weight"])
def test_an_adapter_within(copy, part):
    name = f"model.layers.0.self_attn.q_proj.{part}"
    edit_tensors(copy, lambda tensors: tensors | {name: torch.zeros(4, 4)})
    refused(copy, name, "merge the adapter first", "merge_and_unload")


@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_alone_or_beside(copy, alone):
    edit(copy / "adapter_config.json", lambda raw: raw.update(peft_type="LORA"))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(4, 4)}, copy / "adapter_model.safetensors")
    if alone:
        (copy / SHARD).unlink()
        (copy / "config.json").unlink()
    refused(copy, "LoRA", "merge the adapter first")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"quant_method": "awq"}, "AWQ"),
        ({"quant_method": "fp8"}, "FP8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ],
)
def test_quantised_by_config_json(copy, settings, word):
    edit(copy / "config.json", lambda raw: raw.update(quantization_config=settings))
    refused(copy, f"quantised with {word}", "original checkpoint")


@pytest.mark.parametrize(
    ("ending", "dtype", "word"),
    [
        ("qweight", torch.int32, "AWQ"),
        ("weight_packed", torch.int32, "compressed-tensors"),
        ("weight.absmax", torch.uint8, "bitsandbytes"),
        ("SCB", torch.float32, "bitsandbytes"),
        ("weight_scale_inv", torch.float32, "FP8"),
        ("x", torch.float8_e4m3fn, "FP8"),
    ],
)
def test_quantised_by_its_tensors(copy, ending, dtype, word):
    name = f"model.layers.0.mlp.up_proj.{ending}"
    edit_tensors(copy, lambda tensors: tensors | {name: torch.zeros(4, 4).to(dtype)})
    refused(copy, f"quantised with {word}", "original checkpoint")


def test_gptq_is_taken_unless_the_tower_is_packed(copy):
    edit(copy / "config.json", lambda raw: raw.update(quantization_config={"quant_method": "gptq"}))
    check_vision(Checkpoint(copy))
    name = "visual.blocks.0.attn.qkv.qweight"
    edit_tensors(copy, lambda tensors: tensors | {name: torch.zeros(4, 4, dtype=torch.int32)})
    refused(copy, "quantised with GPTQ, the vision tower, too")


# the files beside the weights


@pytest.mark.parametrize("content", ['{"log_history": [{"loss": NaN}]}', " " * (33 << 20)], ids=["NaN", "33 MB"])
@pytest.mark.parametrize("name", ["trainer_state.json", "training_args.json", "all_results.json"])
def test_what_a_trainer_leaves_is_not_read(copy, name, content):
    (copy / name).write_text(content)
    assert load_tokenizer(copy).chat_template


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize(
    "change", [{"image_mean": [0.5] * 3}, {"image_std": [0.5] * 3}, {"patch_size": 16}, {"image_mean": "x"}]
)
def test_another_preprocessing_is_found_in_every_file(copy, name, change):
    nested = name == "processor_config.json"  # transformers 5
    edit(copy / name, lambda raw: raw.update({"image_processor": change} if nested else change))
    failed = [check.detail for check in checkpoint_checks(Checkpoint(copy)) if check.status == "failed"]
    assert len(failed) == 1 and name in failed[0] and next(iter(change)) in failed[0]


TEMPLATE = "{%- if messages[0].role != 'system' %}<|im_start|>system\nBe brief.\nBe kind.<|im_end|>\n{% endif %}" + (
    "<|im_start|>user\n?<|im_end|>\n"
)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (TEMPLATE, "Be brief.\nBe kind."),
        ("<|im_start|>user\n?<|im_end|>\n", ""),
        ("{{ raise_exception('text only') }}", SYSTEM_PROMPT),
    ],
)
@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_the_system_prompt_is_the_templates(copy, name, template, prompt):
    (copy / "chat_template.json").unlink(missing_ok=True)
    if name.endswith(".jinja"):
        (copy / name).write_text(template)
    else:
        edit(copy / name, lambda raw: raw.update(chat_template=template))
    assert system_prompt(copy) == prompt


@pytest.mark.parametrize("pad", ["<|image_pad|>", "<|video_pad|>"])
def test_a_pad_in_a_question_is_named(tiny_dir, tiny, pad):
    with pytest.raises(InputError, match=r"the question .* holds") as error:
        build_prompt(load_tokenizer(tiny_dir), tiny.config, f"what is {pad}?", (1, 4, 4), 1.0)
    assert pad in str(error.value)


# the head and the offsets


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("other", [True, False])
def test_a_stored_head_is_taken_as_transformers_does(copy, tied, other):
    from transformers import Qwen2_5_VLForConditionalGeneration

    edit(copy / "config.json", lambda raw: raw.update(tie_word_embeddings=tied))

    def change(tensors):
        head = tensors[EMBEDDING].clone()
        return tensors | {"lm_head.weight": head.flip(0) if other else head}

    edit_tensors(copy, change)
    (copy / SHARD).rename(copy / "model.safetensors")
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(copy, dtype=torch.float32)
    ours = LanguageModel(copy, "float32").model
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)
    assert torch.equal(ours.get_input_embeddings().weight, theirs.get_input_embeddings().weight)
    said = [check.name for check in checkpoint_checks(Checkpoint(copy)) if check.status == "warning"]
    assert said == (["language model's head"] if tied and other else [])


def shard(path: Path, *spans: tuple[int, int], size: int) -> None:
    header = {
        f"visual.{number}": {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
        for number, (start, end) in enumerate(spans)
    }
    data = json.dumps(header).encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(size))


@pytest.mark.parametrize(("spans", "size"), [([(0, 8), (4, 12)], 12), ([(0, 8), (0, 8)], 8), ([(8, 12), (0, 12)], 12)])
def test_overlaps_are_refused_as_by_the_formats_own_reader(copy, spans, size):
    from safetensors import SafetensorError, safe_open

    shard(copy / "odd.safetensors", *spans, size=size)
    with pytest.raises(SafetensorError):
        safe_open(copy / "odd.safetensors", "np")
    refused(copy, "odd.safetensors", "overlaps")


def test_offsets_in_any_order(copy):
    tensors = {"visual.b": np.arange(3, dtype=np.float32), "visual.a": np.arange(5, dtype=np.float32)}
    edit_tensors(copy, lambda old: old | {name: torch.from_numpy(values) for name, values in tensors.items()})
    assert {"visual.a", "visual.b"} <= Checkpoint(copy).tensors.keys()


def test_answers_of_a_gptq_checkpoint_come_from_the_original(tiny_dir, frames_dir, tmp_path, run_script):
    gptq = Path(shutil.copytree(tiny_dir, tmp_path / "gptq"))
    edit(gptq / "config.json", lambda raw: raw.update(quantization_config={"quant_method": "gptq"}))
    work = ["--workdir", tmp_path / "work"]
    clip = ["--video", frames_dir, "--size", "56", "84"]
    done = run_script("run_video_by_sec.py", gptq, *clip, "--generate", *work)
    assert done.returncode == 2 and "--language ORIGINAL" in done.stderr and not list((tmp_path / "work").iterdir())
    assert run_script("run_video_by_sec.py", gptq, *clip, *work).returncode == 0
    assert run_script("export.py", gptq, "video", *work).returncode == 0
    ask = ["test_onnx_video_by_sec.py", gptq, "--generate", "--max-new-tokens", "2", *work]
    done = run_script(*ask)
    assert done.returncode == 2 and "quantised with GPTQ" in done.stderr and len(done.stderr.splitlines()) == 1
    done = run_script(*ask, "--language", tiny_dir)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "work" / "fidelity.json").read_text())["text"]) == 2
    other = make_tiny(tmp_path / "other", seed=1)
    done = run_script(*ask, "--language", other)
    assert done.returncode == 2 and "is another than that of" in done.stderr
