"""Runs a step on meta tensors and lists what it would start on a GPU, in order.

Kernels of our own are recorded where they are launched; what torch would start is seen by its
dispatcher, which every operation passes that is not a mere view or an allocation. Torch's own
operations count one launch each, which move their tensors once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.config import ModelConfig
from engine.device_memory import LOGITS_ROWS
from engine.launches.shapes import MOE, NUM_REAL_TOKENS, Step
from engine.model.qwen3_5 import Qwen3_5
from engine.plan import PAGE_TOKENS, Admit
from engine.request import SamplingParams
from engine.runner.batch import BatchBuilder, SampledRows
from engine.runner.device import Array, CpuDevice, Device, Event
from engine.runner.kinds import SIZES, every_kind
from engine.runner.positions import SlotPositions
from engine.runner.rows import Rows
from engine.runner.sampler import sample, score
from kernels.launch import Cost, Launch, recording
from kernels.paged_attention import attention_window

META = torch.device("meta")
_STARTS_NOTHING = {"empty", "empty_strided", "empty_like", "new_empty", "detach", "_reshape_alias"}
_PICKS_ROWS = {"index", "index_select", "embedding", "gather"}  # of their first argument


@dataclass(frozen=True, slots=True)
class TorchOp:
    """An operation of torch's, taken for one launch."""

    name: str
    cost: Cost


Started = Launch | TorchOp


class _TorchOps(TorchDispatchMode):
    """Notes torch's operations, each with the number of our launches before it."""

    def __init__(self, launches: Sequence[Launch]) -> None:
        super().__init__()
        self._launches = launches
        self.ops: list[tuple[int, TorchOp]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _STARTS_NOTHING:
            read = args[1:] if name in _PICKS_ROWS else args
            touched = [x for x in tree_leaves((read, kwargs, result)) if _is_meta(x)]
            if touched:
                moved = sum(x.numel() * x.element_size() for x in touched)
                cost = Cost(necessary_bytes=moved, moved_bytes=moved, flops=0)
                self.ops.append((len(self._launches), TorchOp(name, cost)))
        return result


def record(run: Callable[[], object]) -> list[Started]:
    """What `run` starts, on meta tensors, when it is not the first time."""
    with recording(), torch.inference_mode():
        run()  # what is made once and kept is made now
    with recording() as launches, _TorchOps(launches) as torch_ops, torch.inference_mode():
        run()
    started: list[Started] = []
    before = 0
    for position, op in torch_ops.ops:
        started += [*launches[before:position], op]
        before = position
    return started + launches[before:]


def record_step(
    model: ModelConfig, step: Step, dtype: torch.dtype = torch.bfloat16
) -> list[Started]:
    """All of a step up to its logits; those of the slices' last rows and of every decode row.

    As the runner does, the head is handed at most `LOGITS_ROWS` rows at a time.
    """
    network = Qwen3_5(model, dtype, META)
    inputs, caches = step.inputs(), step.caches(model, dtype)

    def run() -> None:
        hidden_TD = network.forward(inputs, caches)
        for num_rows in _chunks(step.num_samples):
            row_R = torch.empty(num_rows, dtype=torch.int64, device=META)
            network.logits(hidden_TD[row_R])

    return record(run)


def _chunks(num_samples: int) -> list[int]:
    """How many rows of a step's are scored and sampled at a time."""
    return [min(LOGITS_ROWS, num_samples - first) for first in range(0, num_samples, LOGITS_ROWS)]


def record_layer(
    model: ModelConfig, kind: str, step: Step, dtype: torch.dtype = torch.bfloat16
) -> list[Started]:
    """What one more layer of `kind` adds to a step."""

    def of(num_layers: int) -> list[Started]:
        few = msgspec.structs.replace(model, layer_types=(kind,) * num_layers)
        return record_step(few, step, dtype)

    one, two = of(1), of(2)
    num_added = len(two) - len(one)
    same = next(i for i, pair in enumerate(zip(one, two, strict=False)) if not _alike(*pair))
    return two[same - num_added : same]


class _MetaDevice:
    """Takes what the host knows for shapes."""

    torch_device = META
    captures = False

    def upload(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(META)

    def pinned(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def copy_in(self, source: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(source)

    def record(self) -> Event:
        return CpuDevice().record()


def record_sampling(batch: Sequence[SamplingParams], masked: Sequence[int] = ()) -> list[Started]:
    """From a step's logits to its tokens, a row for each of `batch`; grammars mask rows `masked`.

    All but bad words can be recorded: how many of these fit is known on the device only.
    """
    R, V = len(batch), MOE.vocab_size
    rows = _rows(R)
    for slot, sampling in enumerate(batch, 1):
        ids = (1, 2, 3)
        rows.admit(Admit(slot, len(ids), ids, msgspec.structs.replace(sampling, bad_words=())))
    index_R = torch.empty(R, dtype=torch.int64, device=META)
    sampled = SampledRows([*range(1, R + 1)], [3] * R, index_R, index_R, index_R)
    masks = {row: np.zeros(V // 32, dtype=np.int32) for row in masked}

    def run() -> None:
        sample(rows, torch.empty(R, V, device=META), sampled, masks)

    return record(run)


def record_scores(num_rows: int, num_top: int) -> list[Started]:
    """From the logits of a prompt's rows to its log-probabilities."""
    rows, token_R = _rows(num_rows), torch.empty(num_rows, dtype=torch.int64, device=META)

    def run() -> None:
        logits_RV = torch.empty(num_rows, MOE.vocab_size, device=META)
        score(rows, logits_RV, token_R, [num_top] * num_rows)

    return record(run)


def _rows(num_seqs: int) -> Rows:
    device = cast(Device, _MetaDevice())
    return Rows(num_slots=num_seqs + 1, num_real_tokens=NUM_REAL_TOKENS, device=device)


def record_greedy(step: Step) -> list[Started]:
    """From the step's logits to its tokens where every request is greedy."""
    greedy = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
    started: list[Started] = []
    for num_rows in _chunks(step.num_samples):
        started += record_sampling([greedy] * num_rows)
    return started


def record_inputs(step: Step) -> list[Started]:
    """From the step's plan to what the model reads, when its pages are known from steps before."""
    num_slots = step.num_samples + 1
    longest = max(step.context, *step.slices, 1)
    device = cast(Device, _MetaDevice())
    batches = BatchBuilder(
        Rows(num_slots=num_slots, num_real_tokens=NUM_REAL_TOKENS, device=device),
        SlotPositions(num_slots),
        num_slots=num_slots,
        max_step_tokens=step.num_tokens,
        max_pages=-(-longest // PAGE_TOKENS),
    )
    plan = step.plan()
    return record(lambda: batches.inputs(batches.send(plan)))


def record_every_kind() -> list[Started]:
    """What the warm-up's requests start to get their tokens, and its prompts to be scored."""
    started = record_scores(LOGITS_ROWS, num_top=1)
    for sampling in every_kind(has_grammars=True):
        started += record_sampling([sampling], [] if sampling.grammar is None else [0])
    return started


def record_warm_up(model: ModelConfig, *, most_tokens: int = 8192) -> list[Started]:
    """What the warm-up's prompts start, of the model and its head; `most_tokens`: of a step."""
    started = record_head(model, LOGITS_ROWS)
    for step in (
        *(Step(slices=slices) for slices in ((1, most_tokens - 1), (1,))),
        *(Step(num_decodes=number, context=most_tokens) for number in (2, 1)),
        *(Step(slices=(size,)) for size in SIZES),
    ):
        started += record_step(model, step)
    return started


def record_head(model: ModelConfig, num_rows: int) -> list[Started]:
    """What scores rows that follow one another, as those of a prompt do."""
    network = Qwen3_5(model, torch.bfloat16, META)
    hidden_RD = torch.empty(num_rows, model.hidden_size, dtype=torch.bfloat16, device=META)
    return record(lambda: network.logits(hidden_RD))


def record_windows(model: ModelConfig, most_tokens: int = 4) -> list[Started]:
    """Attention of rows that decode 2 to `most_tokens` tokens at once, as speculation asks for."""
    step = Step(num_decodes=8, context=8192)
    kv_P2GOE = step.caches(model, torch.bfloat16).kv_LP2GOE[0]
    H, E, B = model.num_attention_heads, model.head_dim, step.num_decodes
    page_BM = torch.empty(B, -(-step.context // PAGE_TOKENS), dtype=torch.int32, device=META)
    length_B = torch.empty(B, dtype=torch.int32, device=META)

    def run() -> None:
        for W in range(2, most_tokens + 1):
            attention_window(
                torch.empty(B * W, H, E, dtype=torch.bfloat16, device=META),
                torch.empty(B * W, H, 2 * E, dtype=torch.bfloat16, device=META),
                kv_P2GOE=kv_P2GOE,
                page_BM=page_BM,
                length_B=length_B,
                scale=E**-0.5,
            )

    return record(run)


def _alike(one: Started, other: Started) -> bool:
    if isinstance(one, Launch) and isinstance(other, Launch):
        shapes = [tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in one.args]
        others = [tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in other.args]
        same = (one.kernel, one.grid, one.constants) == (other.kernel, other.grid, other.constants)
        return same and shapes == others
    return one == other


def _is_meta(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_meta
