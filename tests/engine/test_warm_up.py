"""Before it is ready, a GPU's engine serves whatever would otherwise compile kernels later."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from engine.build import build
from engine.config import EngineConfig, MemoryPlan
from engine.device_memory import LOGITS_ROWS
from engine.launches.record import (
    Started,
    record_every_kind,
    record_head,
    record_sampling,
    record_step,
    record_warm_up,
)
from engine.launches.shapes import MODELS, MOE, ODD_STEPS, STEPS, Step, few_layers, random_steps
from engine.launches.shapes import NUM_REAL_TOKENS as NUM_REAL_IDS
from engine.plan import StepPlan, StepResult
from engine.request import SamplingParams
from engine.runner.kinds import SIZES, every_kind
from engine.runner.runner import LaunchedStep, Runner
from engine.worker import Built, warm_up
from kernels.launch import Launch
from tests.checkpoints import EOS_TOKEN_ID, NUM_REAL_TOKENS
from tests.engine.simulation import FakeRunner
from tests.engine.test_every_kind_of_request import write_tokenizer


class NotedRunner:
    """Notes its plans, and which requests begin together."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.plans: list[StepPlan] = []
        self.batches: list[tuple[SamplingParams, ...]] = []

    def launch(self, plan: StepPlan) -> LaunchedStep:
        self.plans.append(plan)
        if plan.admits:
            self.batches.append(tuple(admit.sampling for admit in plan.admits))
        return self._runner.launch(plan)

    def stop(self) -> None:
        self._runner.stop()


@pytest.fixture(scope="module")
def built(tiny_dense_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("with tokenizer")
    for file in tiny_dense_dir.iterdir():
        (folder / file.name).symlink_to(file)
    write_tokenizer(folder)
    return build(
        EngineConfig(
            model_dir=str(folder),
            num_real_tokens=NUM_REAL_TOKENS,
            dtype="float32",
            device="cpu",
            max_model_len=256,
            max_num_seqs=4,
            max_step_tokens=256,
            cache_bytes=16 << 20,
            eos_token_ids=(EOS_TOKEN_ID,),
        )
    )


def test_every_kind_is_served_as_it_will_be(built: Built) -> None:
    assert isinstance(built.runner, Runner)
    runner = NotedRunner(built.runner)
    kinds = every_kind(has_grammars=True)
    warm_up(dataclasses.replace(built, runner=runner, warm_up_kinds=kinds))
    assert runner.batches[2:] == [(kind,) for kind in kinds]


def test_prompts_of_all_sizes_are_served_whole_and_scored(built: Built) -> None:
    assert isinstance(built.runner, Runner)
    runner = NotedRunner(built.runner)
    warm_up(dataclasses.replace(built, runner=runner, warm_up_sizes=(64, 200, 10_000)))
    scoring = [plan for plan in runner.plans if any(part.scores_prompt for part in plan.slices)]
    longest = built.memory.max_model_len - 1  # it has to generate a token
    assert [plan.num_tokens for plan in scoring] == [64, 200, longest]
    assert all(part.start == 0 and part.samples for plan in scoring for part in plan.slices)


Kernel = tuple[str, frozenset[tuple[str, object]]]


def kernels_of(started: Iterable[Started]) -> set[Kernel]:
    """As far as constants tell them apart; `engine.launches check` looks at the rest."""
    launches = [item for item in started if isinstance(item, Launch)]
    return {(launch.name, frozenset(launch.constants.items())) for launch in launches}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_any_size_needs_no_other_kernels_than_the_warm_up(name: str) -> None:
    """Whatever is compiled later is waited for by whoever asks for it first."""
    model = few_layers(MODELS[name])
    warmed = kernels_of(record_warm_up(model))
    for step in (*STEPS, *ODD_STEPS, *random_steps(30, seed=1)):
        assert kernels_of(record_step(model, step)) <= warmed, str(step)


@dataclass
class PlannedOnly:
    """Computes nothing real, and keeps the shapes of its steps."""

    runner: FakeRunner
    steps: set[Step] = field(default_factory=set[Step])

    def launch(self, plan: StepPlan) -> "Computed":
        decodes = [part for part in plan.slices if part.decodes]
        slices = tuple(part.num_tokens for part in plan.slices if not part.decodes)
        context = max((part.end for part in decodes), default=8192)
        self.steps.add(Step(num_decodes=len(decodes), context=context, slices=slices))
        return Computed(self.runner.step(plan))


@dataclass
class Computed:
    answer: StepResult

    def result(self, timeout: float | None = None) -> StepResult:
        return self.answer


def planned_steps(built: Built, *, most_tokens: int, num_slots: int) -> set[Step]:
    """Of the warm-up of a GPU's engine with so many slots, whose steps have so many tokens."""
    memory = MemoryPlan(
        num_pages=400,
        num_slots=num_slots,
        page_bytes=1,
        slot_bytes=48,
        max_model_len=4 * most_tokens,
        max_num_seqs=num_slots,
        max_step_tokens=most_tokens,
    )
    runner = PlannedOnly(FakeRunner(memory.num_pages, memory.num_slots))
    warm_up(
        dataclasses.replace(
            built,
            runner=runner,
            memory=memory,
            warm_up_tokens=most_tokens,
            warm_up_sizes=SIZES,
            warm_up_kinds=every_kind(has_grammars=False)[:1],
        )
    )
    return runner.steps


@pytest.mark.parametrize("most_tokens", [2048, 8192])
def test_what_is_recorded_of_the_warm_up_is_what_it_plans(built: Built, most_tokens: int) -> None:
    model = few_layers(MOE)
    steps = planned_steps(built, most_tokens=most_tokens, num_slots=8)
    planned = kernels_of(item for step in steps for item in record_step(model, step))
    assert planned == kernels_of(record_warm_up(model, most_tokens=most_tokens)) - kernels_of(
        record_head(model, LOGITS_ROWS)
    )


def test_an_engine_of_one_sequence_runs_a_full_step_too(built: Built) -> None:
    steps = planned_steps(built, most_tokens=8192, num_slots=1)
    assert {step.slices for step in steps} >= {(1,), (8192,)}
    assert Step(num_decodes=1, context=2) in steps


def test_a_warm_up_that_ends_early_is_not_ready(built: Built) -> None:
    early = SamplingParams(max_tokens=9, seed=0, temperature=0.0, allowed_token_ids=(3,))
    stops = msgspec.structs.replace(early, stop_token_ids=(3,))
    warm_up(dataclasses.replace(built, warm_up_kinds=[early]))
    with pytest.raises(RuntimeError, match=r"the warm-up of .* generated"):
        warm_up(dataclasses.replace(built, warm_up_kinds=[stops]))


FLAGS: dict[str, Callable[[SamplingParams], bool]] = {
    "HAS_PENALTIES": lambda s: s.presence_penalty != 0,
    "HAS_MASKS": lambda s: s.grammar is not None,
    "HAS_BIAS": lambda s: any(abs(bias) < 100 for _, bias in s.logit_bias),
}


def test_what_is_compiled_ahead_for_sampling_is_what_the_warm_up_starts() -> None:
    launches = [item for item in record_every_kind() if isinstance(item, Launch)]
    assert {launch.name for launch in launches} == {
        *("uniform", "parts", "first", "merge", "adjust", "ban", "keep_only"),
        *("draw_from_parts", "draw_from_row"),
    }
    adjusted = {
        tuple(bool(launch.constants[flag]) for flag in FLAGS)
        for launch in launches
        if launch.name == "adjust"
    }
    wanted = {tuple(has(kind) for has in FLAGS.values()) for kind in every_kind(has_grammars=True)}
    assert adjusted == wanted - {(False, False, False)}
    assert len(adjusted) == 7


def test_a_prompts_scores_are_among_them_as_wide_as_the_head() -> None:
    """Any id may be in a prompt, padding too: so its kernel is not that of sampled tokens."""
    launches = [item for item in record_every_kind() if isinstance(item, Launch)]
    widths = {launch.constants["V"] for launch in launches if launch.name == "parts"}
    assert widths == {NUM_REAL_IDS, MOE.vocab_size}


def test_rows_in_company_need_no_other_kernels_than_rows_alone() -> None:
    """What is copied for its kind stays as aligned as the logits are."""
    kinds = [kind for kind in every_kind(has_grammars=False) if kind.temperature]
    launches = [item for item in record_sampling(kinds) if isinstance(item, Launch)]
    strides = {
        launch.args[launch.kernel.arg_names.index("stride")]
        for launch in launches
        if launch.name in ("parts", "draw_from_row")
    }
    assert strides == {MOE.vocab_size}
