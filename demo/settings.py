"""What the demo model is: its sizes, and how long it learns."""

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from demo.mixture import FIRST_OF_LAST
from demo.tokenizer import ADDED_TOKENS, TOKENIZER_CONFIG

ROW_MULTIPLE = 64  # embedding rows are padded to this, as in real checkpoints


@dataclass(frozen=True, slots=True)
class Schedule:
    seed: int = 1
    first_shard: int = 0
    batch_tokens: int = 2048  # of each rank, with padding
    max_tokens: int = 2560  # of a sample
    num_steps: int = 5700
    warm_up: float = 0.01  # shares of all steps
    cool_down: float = 0.6
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    prompt_weight: float = 0.1  # of a token that is not the model's to say
    balance_weight: float = 0.01
    choosing_weight: float = 0.5
    mtp_share: float = 0.06  # the last steps, in which only the MTP layer learns


LAST_SCHEDULE = Schedule(
    first_shard=FIRST_OF_LAST,
    num_steps=900,
    warm_up=0.03,
    cool_down=0.9,
    muon_lr=0.01,
    adam_lr=1e-3,
)


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
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
            "moe_intermediate_size": 64,
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "num_attention_heads": 4,
            "num_experts": 16,
            "num_experts_per_tok": 4,
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
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": -(-tokenizer.get_vocab_size() // ROW_MULTIPLE) * ROW_MULTIPLE,
        },
        "tie_word_embeddings": True,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {  # room for a tower: the weights have none yet
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
