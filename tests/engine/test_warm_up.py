"""Before it is ready, a GPU's engine serves whatever would otherwise compile kernels later."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engine.build import build
from engine.config import EngineConfig
from engine.launches.record import record_every_kind, record_sampling
from engine.launches.shapes import MOE
from engine.plan import StepPlan
from engine.request import SamplingParams
from engine.runner.kinds import every_kind
from engine.runner.runner import LaunchedStep, Runner
from engine.worker import Built, warm_up
from kernels.launch import Launch
from tests.checkpoints import EOS_TOKEN_ID, NUM_REAL_TOKENS
from tests.engine.test_every_kind_of_request import write_tokenizer


class NotedRunner:
    """Notes which requests begin together."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.batches: list[tuple[SamplingParams, ...]] = []

    def launch(self, plan: StepPlan) -> LaunchedStep:
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
