"""The babbler's weights: every tensor of the architecture, at small sizes, drawn from one seed.

Weights are scaled by their fan-in, so that every layer adds to the residual stream about as much
as the embedding did, and a mistake in any layer shows in the text.

One thing is not random. Residual channel 0 holds the same number at every position: each embedding
row starts with it, and no layer writes to it. So column 0 of `lm_head` is a bias, and with it the
babbler says whole words, ends its thinking after a while, later its turn, and never says a control
token that would mean something else.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import TensorSpec, serialize_file
from tokenizers import Tokenizer

from server.babbler.prose import PROSE
from server.babbler.tokenizer import ADDED_TOKENS, TOKENIZER_CONFIG

Floats = npt.NDArray[np.float32]

SEED = 20
ROW_MULTIPLE = 64  # embedding rows are padded to this, as in real checkpoints
STILL = 4.0  # what residual channel 0 holds
LOGIT_SCALE = 2.5
STILL_NORMED = 1.4  # and about what is left of it behind the final norm
NEVER, END_OF_THINKING, END_OF_TURN = -30.0, 2.5, 0.5  # added to the logits
FLOAT32_TENSORS = ("linear_attn.A_log", "linear_attn.norm.weight")
WRITES_TO_RESIDUAL = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "experts.down_proj")


def config(tokenizer: Tokenizer) -> dict[str, Any]:
    """`config.json` with every field a real checkpoint has."""
    num_layers, interval = 8, 4
    ids = {token: tokenizer.token_to_id(token) for token in ADDED_TOKENS}
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_5_moe",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_output_gate": True,
            "dtype": "bfloat16",
            "eos_token_id": ids["<|endoftext|>"],
            "full_attention_interval": interval,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 256,
            "initializer_range": 0.02,
            "layer_types": [
                "linear_attention" if (i + 1) % interval else "full_attention"
                for i in range(num_layers)
            ],
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 64,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_value_head_dim": 64,
            "mamba_ssm_dtype": "float32",
            "max_position_embeddings": TOKENIZER_CONFIG["model_max_length"],
            "mlp_only_layers": [],
            "model_type": "qwen3_5_moe_text",
            "moe_intermediate_size": 128,
            "mtp_num_hidden_layers": 0,
            "mtp_use_dedicated_embeddings": False,
            "num_attention_heads": 4,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "num_hidden_layers": num_layers,
            "num_key_value_heads": 2,
            "output_router_logits": False,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [3, 3, 2],
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000000,
                "rope_type": "default",
            },
            "router_aux_loss_coef": 0.001,
            "shared_expert_intermediate_size": 128,
            "tie_word_embeddings": False,
            "use_cache": True,
            "vocab_size": -(-tokenizer.get_vocab_size() // ROW_MULTIPLE) * ROW_MULTIPLE,
        },
        "tie_word_embeddings": False,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "deepstack_visual_indexes": [],
            "depth": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 64,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 128,
            "model_type": "qwen3_5_moe",
            "num_heads": 4,
            "num_position_embeddings": 2304,
            "out_hidden_size": 256,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


def write_weights(path: Path, model: dict[str, Any], tokenizer: Tokenizer) -> None:
    text = model["text_config"]
    shapes = _text_shapes(text) | _vision_shapes(model["vision_config"])
    rng = np.random.default_rng(SEED)
    tensors = {name: _draw(rng, name, shape) for name, shape in shapes.items()}
    tensors["model.language_model.embed_tokens.weight"][:, 0] = STILL
    tensors["lm_head.weight"] *= LOGIT_SCALE
    tensors["lm_head.weight"][:, 0] = _bias(tokenizer, text["vocab_size"])
    stored = {
        name: value if name.endswith(FLOAT32_TENSORS) else _bfloat16_bits(value)
        for name, value in tensors.items()
    }
    specs = {
        name: TensorSpec(
            dtype="float32" if value.dtype == np.float32 else "bfloat16",
            shape=value.shape,
            data_ptr=value.ctypes.data,
            data_len=value.nbytes,
        )
        for name, value in stored.items()  # keeps the memory behind the pointers alive
    }
    serialize_file(specs, str(path), metadata={"format": "pt"})


def _text_shapes(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, vocab = text["hidden_size"], text["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (vocab, hidden),
        "model.language_model.embed_tokens.weight": (vocab, hidden),
        "model.language_model.norm.weight": (hidden,),
    }
    for i, kind in enumerate(text["layer_types"]):
        layer = _moe_shapes(text) | {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        if kind == "linear_attention":
            layer |= _delta_net_shapes(text)
        else:
            layer |= _attention_shapes(text)
        for name, shape in layer.items():
            shapes[f"model.language_model.layers.{i}.{name}"] = shape
    return shapes


def _attention_shapes(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, dim = text["hidden_size"], text["head_dim"]
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    return {
        "self_attn.q_proj.weight": (2 * heads * dim, hidden),  # query and gate of every head
        "self_attn.k_proj.weight": (kv_heads * dim, hidden),
        "self_attn.v_proj.weight": (kv_heads * dim, hidden),
        "self_attn.o_proj.weight": (hidden, heads * dim),
        "self_attn.q_norm.weight": (dim,),
        "self_attn.k_norm.weight": (dim,),
    }


def _delta_net_shapes(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, heads = text["hidden_size"], text["linear_num_value_heads"]
    value_dim = heads * text["linear_value_head_dim"]
    conv_dim = 2 * text["linear_num_key_heads"] * text["linear_key_head_dim"] + value_dim
    return {
        "linear_attn.in_proj_qkv.weight": (conv_dim, hidden),
        "linear_attn.in_proj_z.weight": (value_dim, hidden),
        "linear_attn.in_proj_b.weight": (heads, hidden),
        "linear_attn.in_proj_a.weight": (heads, hidden),
        "linear_attn.conv1d.weight": (conv_dim, 1, text["linear_conv_kernel_dim"]),
        "linear_attn.A_log": (heads,),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.norm.weight": (text["linear_value_head_dim"],),
        "linear_attn.out_proj.weight": (hidden, value_dim),
    }


def _moe_shapes(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, experts, width = text["hidden_size"], text["num_experts"], text["moe_intermediate_size"]
    shared = text["shared_expert_intermediate_size"]
    return {
        "mlp.gate.weight": (experts, hidden),
        "mlp.experts.gate_up_proj": (experts, 2 * width, hidden),
        "mlp.experts.down_proj": (experts, hidden, width),
        "mlp.shared_expert.gate_proj.weight": (shared, hidden),
        "mlp.shared_expert.up_proj.weight": (shared, hidden),
        "mlp.shared_expert.down_proj.weight": (hidden, shared),
        "mlp.shared_expert_gate.weight": (1, hidden),
    }


def _vision_shapes(vision: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, width, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    merged = hidden * vision["spatial_merge_size"] ** 2
    weights: dict[str, tuple[int, ...]] = {
        "patch_embed.proj": (
            hidden,
            vision["in_channels"],
            vision["temporal_patch_size"],
            patch,
            patch,
        ),
        "merger.norm": (hidden,),
        "merger.linear_fc1": (merged, merged),
        "merger.linear_fc2": (vision["out_hidden_size"], merged),
    }
    for i in range(vision["depth"]):
        weights |= {
            f"blocks.{i}.norm1": (hidden,),
            f"blocks.{i}.norm2": (hidden,),
            f"blocks.{i}.attn.qkv": (3 * hidden, hidden),
            f"blocks.{i}.attn.proj": (hidden, hidden),
            f"blocks.{i}.mlp.linear_fc1": (width, hidden),
            f"blocks.{i}.mlp.linear_fc2": (hidden, width),
        }
    shapes = {f"model.visual.{name}.weight": shape for name, shape in weights.items()}
    shapes |= {f"model.visual.{name}.bias": shape[:1] for name, shape in weights.items()}
    shapes["model.visual.pos_embed.weight"] = (vision["num_position_embeddings"], hidden)
    return shapes


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Floats:
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("A_log"):
        return np.log(rng.uniform(0.05, 2.0, shape)).astype(np.float32)
    if name.endswith(("linear_attn.norm.weight", "norm1.weight", "norm2.weight")):
        return 1 + 0.1 * noise
    if "visual.merger.norm.weight" in name:
        return 1 + 0.1 * noise
    if name.endswith(("norm.weight", "bias")):  # the other norms multiply by 1 + weight
        return 0.1 * noise
    if name.endswith(("embed_tokens.weight", "pos_embed.weight")):
        return noise
    is_convolution = name.endswith(("conv1d.weight", "patch_embed.proj.weight"))
    fan_in = math.prod(shape[1:] if is_convolution else shape[-1:])
    value = noise / np.float32(math.sqrt(fan_in))
    if "language_model" in name and name.endswith(WRITES_TO_RESIDUAL):
        value[..., 0, :] = 0
    return value


def _bias(tokenizer: Tokenizer, num_rows: int) -> Floats:
    """Column 0 of `lm_head`: how much likelier than by chance each token is."""
    sayable = {f" {word}" for word in re.findall(r"\b[a-z]{2,}\b", PROSE)} | set(",.;:?!")
    bias = np.full(num_rows, NEVER, dtype=np.float32)
    for token_id in range(tokenizer.get_vocab_size()):
        if tokenizer.decode([token_id]) in sayable:
            bias[token_id] = 0
    bias[tokenizer.token_to_id("</think>")] = END_OF_THINKING
    bias[tokenizer.token_to_id("<|im_end|>")] = END_OF_TURN
    return bias / STILL_NORMED


def _bfloat16_bits(value: Floats) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even."""
    bits = np.ascontiguousarray(value).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
