"""A GPU's memory by arithmetic: what weights, activations and the driver leave for the caches.

Nothing is run to find out. The bound on activations counts every tensor of a layer as if all were
alive at once, though most are not; it is small beside the caches all the same. So is the bound on
encoding a picture, which happens before the layers of its step run. No torch here.
"""

from math import ceil

from engine.config import EngineConfig, MemoryPlan, ModelConfig
from engine.memory_plan import GPU_DEFAULTS, Defaults, fitting_step_tokens, plan_memory
from engine.plan import PAGE_TOKENS
from engine.vision_config import VisionConfig

CONTEXT_BYTES = 1 << 30  # the driver's context, loaded kernels, and what fragments
LOGITS_ROWS = 64  # scored at once
LOGITS_BYTES = 40  # of a row and an id: logits, weights in fp32, their running sum in fp64, copies
FEATURE_CACHE_BYTES = 256 << 20  # of pictures that were encoded before
LARGEST_PICTURE = 16_777_216  # pixels
TOWER_ROWS = 4096  # patches for which the tower makes what is wider than they are
DECODE_SPLITS = 128  # partial results of a decode row's attention, at most


def plan_gpu_memory(
    model: ModelConfig,
    config: EngineConfig,
    *,
    dtype_bytes: int,
    weight_bytes: int,
    total_bytes: int,
    free_bytes: int,
) -> MemoryPlan:
    """What a GPU of `total_bytes` holds besides the weights. Raises ValueError as `plan_memory`."""
    budget = cache_budget(
        model,
        config,
        defaults=GPU_DEFAULTS,
        dtype_bytes=dtype_bytes,
        weight_bytes=weight_bytes,
        total_bytes=total_bytes,
        free_bytes=free_bytes,
    )
    return plan_memory(
        model, config, dtype_bytes=dtype_bytes, available_bytes=budget, defaults=GPU_DEFAULTS
    )


def cache_budget(
    model: ModelConfig,
    config: EngineConfig,
    *,
    defaults: Defaults,
    dtype_bytes: int,
    weight_bytes: int,
    total_bytes: int,
    free_bytes: int,
) -> int:
    """Bytes for pages and states: `memory_utilization` of the GPU, without all else; at least 0.

    `free_bytes`, once the weights are loaded, says what others left of it.
    """
    activations = activation_bytes(model, config, defaults=defaults, dtype_bytes=dtype_bytes)
    if model.vision is not None:
        activations += picture_bytes(model.vision, model.hidden_size, dtype_bytes=dtype_bytes)
    share = int(config.memory_utilization * total_bytes) - weight_bytes - CONTEXT_BYTES
    return max(0, min(share, free_bytes) - activations)


def activation_bytes(
    model: ModelConfig, config: EngineConfig, *, defaults: Defaults, dtype_bytes: int
) -> int:
    """What the largest step takes beside weights and caches, its graph's memory included."""
    num_seqs = config.max_num_seqs or defaults.num_seqs
    asked = config.max_step_tokens or defaults.step_tokens
    step_tokens = fitting_step_tokens(asked, num_seqs)
    partials = 4 * model.num_attention_heads * (model.head_dim + 2) * DECODE_SPLITS
    per_decode = _layer_bytes(model, dtype_bytes) + partials
    return (
        step_tokens * _layer_bytes(model, dtype_bytes)
        + 2 * num_seqs * per_decode  # once eager, once in the graphs' own pool
        + LOGITS_ROWS * model.vocab_size * LOGITS_BYTES
    )


def picture_bytes(tower: VisionConfig, text_hidden_size: int, *, dtype_bytes: int) -> int:
    """What encoding the largest picture takes, and keeping the features of it and of others."""
    W, F, E = tower.hidden_size, tower.intermediate_size, tower.head_dim
    C = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2  # numbers in a patch
    N = LARGEST_PICTURE // tower.patch_size**2
    per_patch = (
        3 * C  # pixels, and these in the order of patches
        + dtype_bytes * 4 * W  # residual stream, queries, keys and values
        + 4 * 4 * E  # angles
        + 8 * 4  # rows and columns
    )
    per_row = (
        (dtype_bytes + 4 * 3) * C  # normalised
        + (dtype_bytes * 2 + 4 * 4) * W  # and embedded
        + (dtype_bytes * 8 + 4 * 6) * W  # attention, turned in fp32
        + dtype_bytes * (2 * F + 2 * W)
        + dtype_bytes * 4 * W  # merged
    )
    features = dtype_bytes * text_hidden_size * (N // tower.spatial_merge_size**2)
    # In pieces, whole, of another sequence that is half through its own, and in the step's rows.
    return N * per_patch + TOWER_ROWS * per_row + 4 * features + FEATURE_CACHE_BYTES


def _layer_bytes(model: ModelConfig, dtype_bytes: int) -> int:
    """Of one token: the residual stream, the larger of the two mixers, and the FFN."""
    D = model.hidden_size
    H, G, E = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    attention = dtype_bytes * (2 * H * E + 2 * G * E + 2 * H * E) + 8 * model.rotary_dim

    N, K, V = (
        model.linear_num_value_heads,
        model.linear_key_head_dim,
        model.linear_value_head_dim,
    )
    delta_net = (
        dtype_bytes * (model.conv_dim + 2 * N * V + 2 * N)
        + 4 * model.conv_dim  # convolved
        + 4 * N * (2 * K + 2 * V + PAGE_TOKENS)  # a chunk's factors
        + ceil(4 * N * K * V / PAGE_TOKENS)  # a state per chunk
    )
    F, J, k = model.moe_intermediate_size, model.num_experts, model.num_experts_per_tok
    dense_F = max(model.intermediate_size, model.shared_expert_intermediate_size)
    ffn = 4 * (J + 2 * k) + 4 * k * (3 * F + D) + dtype_bytes * 3 * dense_F + 4 * D
    return dtype_bytes * 6 * D + max(attention, delta_net) + ffn
