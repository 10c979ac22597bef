"""The tensors that a Qwen2.5-VL checkpoint consists of, from its configuration alone."""

from qwen_vl_axera.config import ModelConfig, TextConfig, VisionConfig


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Normalised name -> shape of every tensor, vision tower first, in the order of the forward pass.

    `lm_head.weight` is absent where it is tied to the embeddings.
    """
    return vision_tensors(config.vision) | text_tensors(config.text)


def vision_tensors(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of `visual.*`."""
    hidden, merged = config.hidden_size, config.hidden_size * config.merge_unit
    kernel = config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (hidden, *kernel)}
    for number in range(config.depth):
        block = f"visual.blocks.{number}"
        shapes[f"{block}.norm1.weight"] = (hidden,)
        shapes |= _linear(f"{block}.attn.qkv", 3 * hidden, hidden)
        shapes |= _linear(f"{block}.attn.proj", hidden, hidden)
        shapes[f"{block}.norm2.weight"] = (hidden,)
        shapes |= _linear(f"{block}.mlp.gate_proj", config.intermediate_size, hidden)
        shapes |= _linear(f"{block}.mlp.up_proj", config.intermediate_size, hidden)
        shapes |= _linear(f"{block}.mlp.down_proj", hidden, config.intermediate_size)
    shapes["visual.merger.ln_q.weight"] = (hidden,)
    shapes |= _linear("visual.merger.mlp.0", merged, merged)
    shapes |= _linear("visual.merger.mlp.2", config.out_hidden_size, merged)
    return shapes


def text_tensors(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the language model: embeddings, layers, final norm and, unless tied, the head."""
    hidden, inner = config.hidden_size, config.intermediate_size
    key_value = hidden // config.num_attention_heads * config.num_key_value_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes |= _linear(f"{layer}.self_attn.q_proj", hidden, hidden)
        shapes |= _linear(f"{layer}.self_attn.k_proj", key_value, hidden)
        shapes |= _linear(f"{layer}.self_attn.v_proj", key_value, hidden)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
