"""One byte budget, two memories: how many state slots and KV pages it buys. Arithmetic, no torch.

    (slots + saved_slots + 1) * slot_bytes + (pages + 1) * page_bytes <= budget   the 1s are scratch

States of running sequences come first, and the pages of one sequence of full length. Of what is
left a third goes to saved states of the prefix cache, up to `SAVED_PER_SEQ` for each sequence that
can run, and the rest to pages, no more of them than `max_num_seqs` sequences of `max_model_len`
tokens could ever fill. The third is a guess: of 35B-A3B it is right where a prompt brings 6,000
new tokens and saves one state.

When the budget is too small for the defaults, `max_num_seqs` shrinks first, so that one sequence of
full length still fits; but not below `FEW_SEQS` as long as the length can give instead, down to
`SHORT_LEN`, because a server that takes one request at a time to keep a window nobody asked for
helps nobody. Only then does it go down to one sequence and whatever length is left. What the caller
asked for in so many words is never shrunk: it is met or refused.
"""

from dataclasses import dataclass
from math import ceil

from engine.config import EngineConfig, MemoryPlan, ModelConfig
from engine.plan import PAGE_TOKENS

DEFAULT_NUM_SEQS = 32
DEFAULT_STEP_TOKENS = 512
DEFAULT_CACHE_BYTES = 8 << 30
FEW_SEQS = 4
SHORT_LEN = 4096
SAVED_SHARE = 3  # the part of what is left that saved states get: one in so many
SAVED_PER_SEQ = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a device is good for, where the caller says nothing."""

    num_seqs: int
    few_seqs: int  # not to be undercut for the sake of a longer window
    step_tokens: int
    takes_all: bool  # the budget is spent whole, not only as far as it is likely to be of use


CPU_DEFAULTS = Defaults(
    num_seqs=DEFAULT_NUM_SEQS,
    few_seqs=FEW_SEQS,
    step_tokens=DEFAULT_STEP_TOKENS,
    takes_all=False,
)
GPU_DEFAULTS = Defaults(num_seqs=128, few_seqs=32, step_tokens=2048, takes_all=True)


def plan_memory(
    model_config: ModelConfig,
    engine_config: EngineConfig,
    *,
    dtype_bytes: int,
    available_bytes: int,
    defaults: Defaults = CPU_DEFAULTS,
) -> MemoryPlan:
    """Size the caches; `available_bytes` is what is left for them, on a CPU after the weights.

    Without `cache_bytes` the budget of a GPU is all of that. That of a CPU is `memory_utilization`
    of it, but no more than `DEFAULT_CACHE_BYTES` or what the states and one sequence of full length
    need, if that is more: unlike a GPU's, this memory is shared with whatever else runs here, cache
    that was written once stays resident, and a CPU is out of arithmetic long before it has filled
    more. For 35B-A3B, 8 GiB hold 32 states and nearly 10,000 tokens for each of them.

    Raises ValueError, one line, for a wish that cannot be met or a budget under one page and slot.
    """
    page_bytes = model_config.page_bytes(dtype_bytes)
    slot_bytes = model_config.state_bytes(dtype_bytes)
    warnings: list[str] = []

    max_model_len = _wanted_len(model_config, engine_config)
    max_num_seqs = _at_least_1("max_num_seqs", engine_config.max_num_seqs) or defaults.num_seqs
    wanted_bytes = (max_num_seqs + 1) * slot_bytes
    wanted_bytes += (_pages(max_model_len) + 1) * page_bytes
    budget = _budget(engine_config, defaults, wanted_bytes, available_bytes)
    budget -= page_bytes + slot_bytes
    if budget < page_bytes + slot_bytes:
        raise ValueError(
            f"{_mib(budget + page_bytes + slot_bytes)} for the caches is too little: one sequence "
            f"needs at least {_mib(2 * (page_bytes + slot_bytes))}"
        )

    def most_seqs(length: int) -> int:
        return (budget - _pages(length) * page_bytes) // slot_bytes

    def longest(num_seqs: int) -> int:
        return (budget - num_seqs * slot_bytes) // page_bytes * PAGE_TOKENS

    num_seqs, length = max_num_seqs, max_model_len
    if engine_config.max_num_seqs is None:
        num_seqs = min(max_num_seqs, most_seqs(max_model_len))
        few_seqs = min(defaults.few_seqs, max_num_seqs)
        if engine_config.max_model_len is None and num_seqs < few_seqs:
            num_seqs = max(1, min(few_seqs, most_seqs(min(max_model_len, SHORT_LEN))))
    if engine_config.max_model_len is None:
        length = min(max_model_len, longest(num_seqs))
    if num_seqs < 1 or length < 1 or longest(num_seqs) < length:
        raise ValueError(_refusal(engine_config, max_num_seqs, max_model_len, budget))
    if num_seqs < max_num_seqs:
        warnings.append(
            f"max_num_seqs is {num_seqs} instead of {max_num_seqs}: each running sequence takes "
            f"{_mib(slot_bytes)} of the {_mib(budget)} of cache"
        )
    if length < max_model_len:
        warnings.append(
            f"max_model_len is {length} instead of {max_model_len}: no more tokens fit in the "
            f"{_mib(budget)} of cache beside {num_seqs} sequence states"
        )
    num_saved = 0
    if engine_config.prefix_cache:
        left = budget - num_seqs * slot_bytes - _pages(length) * page_bytes
        num_saved = min(left // SAVED_SHARE // slot_bytes, SAVED_PER_SEQ * num_seqs)
    most_pages = (budget - (num_seqs + num_saved) * slot_bytes) // page_bytes
    return MemoryPlan(
        num_pages=min(most_pages, num_seqs * _pages(length)),
        num_slots=num_seqs,
        num_saved_slots=num_saved,
        page_bytes=page_bytes,
        slot_bytes=slot_bytes,
        max_model_len=length,
        max_num_seqs=num_seqs,
        max_step_tokens=_step_tokens(engine_config, defaults, num_seqs, warnings),
        warnings=tuple(warnings),
    )


def _wanted_len(model_config: ModelConfig, engine_config: EngineConfig) -> int:
    limit = model_config.max_position_embeddings
    if model_config.yarn_factor is not None:
        stretched = int(model_config.yarn_factor * model_config.yarn_original_max_position)
        limit = max(limit, stretched)
    wanted = _at_least_1("max_model_len", engine_config.max_model_len) or limit
    if wanted > limit:
        raise ValueError(f"max_model_len {wanted} is more than the {limit} the model was made for")
    return wanted


def _budget(
    engine_config: EngineConfig, defaults: Defaults, wanted_bytes: int, available_bytes: int
) -> int:
    share = engine_config.memory_utilization
    if not 0 < share <= 1:
        raise ValueError(f"memory_utilization must lie in (0, 1], not be {share}")
    if engine_config.cache_bytes is None:
        if defaults.takes_all:
            return available_bytes
        return min(int(share * available_bytes), max(DEFAULT_CACHE_BYTES, wanted_bytes))
    if engine_config.cache_bytes > available_bytes:
        raise ValueError(
            f"cache_bytes {engine_config.cache_bytes} is more than the {_mib(available_bytes)} "
            "left after the weights"
        )
    return engine_config.cache_bytes


def _refusal(config: EngineConfig, max_num_seqs: int, max_model_len: int, budget: int) -> str:
    wishes: list[str] = []
    if config.max_num_seqs is not None:
        wishes.append(f"max_num_seqs {max_num_seqs}")
    if config.max_model_len is not None:
        wishes.append(f"max_model_len {max_model_len}")
    return (
        f"{' with '.join(wishes)} does not fit in {_mib(budget)} of cache: "
        "lower it or give the cache more memory"
    )


def fitting_step_tokens(asked: int, num_seqs: int) -> int:
    """A multiple of the grid with room for every decode and one prefill chunk beside them."""
    return ceil(max(asked, PAGE_TOKENS + num_seqs) / PAGE_TOKENS) * PAGE_TOKENS


def _step_tokens(
    engine_config: EngineConfig, defaults: Defaults, num_seqs: int, warnings: list[str]
) -> int:
    asked = _at_least_1("max_step_tokens", engine_config.max_step_tokens) or defaults.step_tokens
    step_tokens = fitting_step_tokens(asked, num_seqs)
    if step_tokens != asked:
        warnings.append(
            f"max_step_tokens is {step_tokens} instead of {asked}: it must be a multiple of "
            f"{PAGE_TOKENS} and hold {num_seqs} decodes beside a chunk of {PAGE_TOKENS}"
        )
    return step_tokens


def _at_least_1(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _pages(num_tokens: int) -> int:
    return ceil(num_tokens / PAGE_TOKENS)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
