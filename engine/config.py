"""Frozen configurations: `ModelConfig` comes from a checkpoint, `EngineConfig` from the caller.

No torch here: the server reads these too.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from engine.plan import PAGE_TOKENS
from engine.vision_config import VisionConfig

SUPPORTED_ARCHITECTURES = (
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5ForCausalLM",
)

YARN_DEFAULTS = {  # of the released models; other values change the frequencies or the logits
    "attention_factor": None,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
}


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The text model of a Qwen3.5-family checkpoint: every field the engine needs, no other."""

    architecture: str
    vocab_size: int
    hidden_size: int
    layer_types: tuple[str, ...]  # "linear_attention" | "full_attention"
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    dtype: str  # of the checkpoint: "bfloat16", "float16" or "float32"
    eos_token_id: tuple[int, ...]

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rotary_dim: int
    mrope_section: tuple[int, int, int]
    yarn_factor: float | None  # None: plain rotary
    yarn_original_max_position: int

    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int

    intermediate_size: int  # dense FFN; 0 in MoE models
    num_experts: int  # 0: dense
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int

    vision: VisionConfig | None = None  # as configured; whether its weights are there is another

    @property
    def num_layers(self) -> int:
        return len(self.layer_types)

    @property
    def num_linear_layers(self) -> int:
        return self.layer_types.count("linear_attention")

    @property
    def num_full_layers(self) -> int:
        return self.layer_types.count("full_attention")

    @property
    def conv_dim(self) -> int:
        """Channels of the packed Q | K | V that pass through the causal convolution."""
        key_dim = self.linear_num_key_heads * self.linear_key_head_dim
        return 2 * key_dim + self.linear_num_value_heads * self.linear_value_head_dim

    def page_bytes(self, kv_dtype_bytes: int) -> int:
        """Bytes of one page of `PAGE_TOKENS` tokens over all attention layers, K and V."""
        per_token = 2 * self.num_key_value_heads * self.head_dim * kv_dtype_bytes
        return self.num_full_layers * PAGE_TOKENS * per_token

    def state_bytes(self, conv_dtype_bytes: int) -> int:
        """Bytes of one sequence's recurrent (fp32) and conv state over all DeltaNet layers."""
        recurrent = (
            4 * self.linear_num_value_heads * self.linear_key_head_dim * self.linear_value_head_dim
        )
        conv = conv_dtype_bytes * self.conv_dim * (self.linear_conv_kernel_dim - 1)
        return self.num_linear_layers * (recurrent + conv)

    @classmethod
    def from_dir(cls, model_dir: Path) -> "ModelConfig":
        """Read `config.json`. Raises ValueError with one readable line if it cannot be served."""
        path = model_dir / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{model_dir} holds no config.json: is it a checkpoint?") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ValueError(f"{path} does not hold a JSON object")
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "ModelConfig":
        architecture = (raw.get("architectures") or ["(none)"])[0]
        if architecture not in SUPPORTED_ARCHITECTURES:
            raise ValueError(
                f"config.json: architecture {architecture} is not supported; "
                f"deltaserve serves {', '.join(SUPPORTED_ARCHITECTURES)}"
            )
        text: dict[str, Any] = raw.get("text_config") or raw
        try:
            return cls._from_text(architecture, text, raw)
        except KeyError as error:
            raise ValueError(f"config.json: field {error.args[0]} is missing") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(f"config.json: a field has the wrong type: {error}") from None

    @classmethod
    def _from_text(
        cls, architecture: str, text: dict[str, Any], raw: dict[str, Any]
    ) -> "ModelConfig":
        is_moe = "Moe" in architecture
        if text.get("attention_bias") or text.get("hidden_act", "silu") != "silu":
            raise ValueError(
                "config.json: attention_bias and hidden_act other than silu are not served"
            )
        if not text.get("attn_output_gate", True):
            raise ValueError("config.json: attn_output_gate false is not a Qwen3.5 model")
        if text.get("output_gate_type", "swish") not in ("swish", "silu"):
            raise ValueError("config.json: output_gate_type must be swish")
        if text.get("mlp_only_layers"):
            raise ValueError("config.json: mlp_only_layers is not supported")
        num_layers = int(text["num_hidden_layers"])
        interval = int(text.get("full_attention_interval") or 4)
        layer_types = text.get("layer_types") or [
            "full_attention" if (i + 1) % interval == 0 else "linear_attention"
            for i in range(num_layers)
        ]
        if len(layer_types) != num_layers or set(layer_types) - {
            "linear_attention",
            "full_attention",
        }:
            raise ValueError("config.json: layer_types does not fit num_hidden_layers")
        rope: dict[str, Any] = text.get("rope_parameters") or text.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type not in ("default", "yarn"):
            raise ValueError(f"config.json: rope_type {rope_type} is not supported")
        for name, served in YARN_DEFAULTS.items():
            if rope.get(name, served) != served:
                raise ValueError(f"config.json: rope_parameters.{name} must be {served}")
        head_dim = int(text["head_dim"])
        partial = rope.get("partial_rotary_factor", text.get("partial_rotary_factor", 0.25))
        eos = text.get("eos_token_id", raw.get("eos_token_id"))
        eos_ids: list[int] = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        max_positions = int(text["max_position_embeddings"])
        return cls(
            architecture=architecture,
            vocab_size=int(text["vocab_size"]),
            hidden_size=int(text["hidden_size"]),
            layer_types=tuple(layer_types),
            max_position_embeddings=max_positions,
            rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(
                raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
            ),
            dtype=str(
                text.get("dtype")
                or text.get("torch_dtype")
                or raw.get("dtype")
                or raw.get("torch_dtype")
                or "bfloat16"
            ),
            eos_token_id=tuple(eos_ids),
            num_attention_heads=int(text["num_attention_heads"]),
            num_key_value_heads=int(text["num_key_value_heads"]),
            head_dim=head_dim,
            rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 1e7))),
            rotary_dim=int(head_dim * float(partial)),
            mrope_section=tuple(rope.get("mrope_section") or (11, 11, 10)),  # type: ignore[arg-type]
            yarn_factor=float(rope["factor"]) if rope_type == "yarn" else None,
            yarn_original_max_position=int(
                rope.get("original_max_position_embeddings") or max_positions
            ),
            linear_num_key_heads=int(text["linear_num_key_heads"]),
            linear_num_value_heads=int(text["linear_num_value_heads"]),
            linear_key_head_dim=int(text["linear_key_head_dim"]),
            linear_value_head_dim=int(text["linear_value_head_dim"]),
            linear_conv_kernel_dim=int(text["linear_conv_kernel_dim"]),
            intermediate_size=0 if is_moe else int(text["intermediate_size"]),
            num_experts=int(text["num_experts"]) if is_moe else 0,
            num_experts_per_tok=int(text["num_experts_per_tok"]) if is_moe else 0,
            moe_intermediate_size=int(text["moe_intermediate_size"]) if is_moe else 0,
            shared_expert_intermediate_size=(
                int(text["shared_expert_intermediate_size"]) if is_moe else 0
            ),
            vision=(
                VisionConfig.from_raw(raw, text_hidden_size=int(text["hidden_size"]))
                if architecture.endswith("ForConditionalGeneration")
                else None
            ),
        )


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a checkpoint. Sizes are wishes: the engine clamps what cannot be and says so."""

    model_dir: str
    num_real_tokens: int  # ids from here on are padding rows of the embedding: never sampled
    eos_token_ids: tuple[int, ...] = ()  # ends of an answer; without them no grammars
    dtype: str = "auto"  # "auto": the checkpoint's
    max_model_len: int | None = None  # None: what the model was made for, clamped to what fits
    max_num_seqs: int | None = None  # running at once; None: by the device
    max_step_tokens: int | None = None  # token budget of one step; None: by the device
    cache_bytes: int | None = None  # KV pages and states together; None: from `memory_utilization`
    # Share of a GPU's whole memory to take, weights and all; on a CPU, of what the weights leave.
    memory_utilization: float = 0.9
    max_waiting: int = 1024
    queue_timeout_s: float = 60.0
    num_threads: int | None = None  # CPU threads of the model; None: torch's choice
    device: str = "auto"  # "cpu", "cuda", or "auto": a GPU if there is one
    enforce_eager: bool = False  # no graphs on a GPU
    deterministic: bool = False  # texts depend on nothing but their requests, bit for bit
    prefix_cache: bool = True  # keep what was computed of prompts for those that begin alike
    language_model_only: bool = False  # leave the vision tower out, and with it all pictures


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the byte budget buys. Scratch page and scratch slot are counted in `*_bytes` only."""

    num_pages: int  # usable pages of PAGE_TOKENS tokens
    num_slots: int  # usable recurrent-state slots = sequences that can run at once
    num_saved_slots: int = 0  # slots beside these, for states of the prefix cache
    page_bytes: int
    slot_bytes: int
    max_model_len: int
    max_num_seqs: int
    max_step_tokens: int
    warnings: tuple[str, ...] = ()

    @property
    def num_kv_tokens(self) -> int:
        return self.num_pages * PAGE_TOKENS

    @property
    def pages_per_state(self) -> int:
        """Pages that take the memory of one state, rounded."""
        return round(self.slot_bytes / self.page_bytes)
