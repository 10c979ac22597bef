"""The tensors that a Qwen2.5-VL checkpoint consists of, from its configuration alone."""

from qwen_vl_axera.checkpoint.config import ModelConfig, TextConfig
from qwen_vl_axera.towers import find_tower


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Normalised name -> shape of every tensor, vision tower first, in the order of the forward pass.

    `lm_head.weight` is absent where it is tied to the embeddings.
    """
    return vision_tensors(config) | text_tensors(config.text)


def vision_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the vision tower."""
    return find_tower(config.model_type).stored_tensors(config.vision)


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
