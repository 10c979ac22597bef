"""The tensors that a Qwen2.5-VL checkpoint consists of, from its configuration alone."""

from qwen_vl_axera.checkpoint.config import ModelConfig, TextConfig
from qwen_vl_axera.checkpoint.tensors import ORIGINAL, Checkpoint, read_bytes
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.memory import check_memory
from qwen_vl_axera.towers import find_tower
from qwen_vl_axera.towers.tower import Tower

FLOAT = 4  # bytes


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Normalised name -> shape of every tensor, vision tower first, in the order of the forward pass.

    `lm_head.weight` is absent where it is tied to the embeddings.
    """
    return vision_tensors(config) | text_tensors(config.text, find_tower(config.model_type))


def check_vision(checkpoint: Checkpoint, size: tuple[int, int] | None = None) -> None:
    """That the tower is stored as config.json describes it, and that a size's step fits this machine's memory.

    Raises:
        InputError: it is quantised in a way that the compiler doesn't read, a tensor is missing, of another shape or of
            a block beyond the last, or it doesn't fit.
    """
    method, depth = checkpoint.quantization, checkpoint.config.vision.depth
    packed = any(name.startswith("visual.") and name.endswith(".qweight") for name in checkpoint.tensors)
    if method and (method != "GPTQ" or packed):
        tower = ", the vision tower, too" if packed else ""
        raise InputError(f"{checkpoint.directory}: quantised with {method}{tower}: {ORIGINAL}")
    checkpoint.check_counts()
    if beyond := next((name for name in checkpoint.tensors if name.startswith(f"visual.blocks.{depth}.")), None):
        raise InputError(f"{checkpoint.directory}: config.json asks for {depth} vision blocks, {beyond} is stored, too")
    checkpoint.check_shapes(vision_tensors(checkpoint.config))
    if size is not None:
        check_step_memory(checkpoint.config, size)


def check_same_tower(checkpoint: Checkpoint, other: Checkpoint) -> None:
    """That another checkpoint's language model may answer about this one's features: its tower is the same.

    Raises:
        InputError: a tensor of the tower is missing there, or differs.
    """
    if checkpoint.directory == other.directory:
        return
    for name in vision_tensors(checkpoint.config):
        one, two = checkpoint.info(name), other.info(name)
        pairs = zip(read_bytes(one), read_bytes(two), strict=False)
        if (one.dtype, one.shape) != (two.dtype, two.shape) or any(left != right for left, right in pairs):
            raise InputError(f"{other.directory}: its {name} is another than that of {checkpoint.directory}")


def check_step_memory(config: ModelConfig, size: tuple[int, int]) -> None:
    """That one step of a size fits this machine's memory: its patches, and the activations of a block.

    Raises:
        InputError: it does not.
    """
    vision = config.vision
    rows, columns = vision.grid(size)
    values = vision.in_channels * vision.patch_pixels + 4 * vision.hidden_size + 2 * vision.intermediate_size
    check_memory(FLOAT * values * rows * columns, f"a step of {size[0]}x{size[1]}")


def vision_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the vision tower."""
    return find_tower(config.model_type).stored_tensors(config.vision)


def text_tensors(config: TextConfig, tower: Tower) -> dict[str, tuple[int, ...]]:
    """The tensors of the language model: embeddings, layers, final norm and, unless tied, the head."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        for name, count in heads.items():
            channels = count * config.head_dim
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (channels, hidden)
            if tower.qkv_bias:
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (channels,)
        for name in ("q", "k") if tower.qk_norm else ():
            shapes[f"{layer}.self_attn.{name}_norm.weight"] = (config.head_dim,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, heads["q"] * config.head_dim)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes
