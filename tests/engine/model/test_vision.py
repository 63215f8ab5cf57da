"""The vision tower, and prompts with pictures, against transformers on the same weights.

The tolerance is that of `test_qwen3_5`: fp32 on both sides, sums in different orders.
"""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.config import ModelConfig
from engine.device_memory import FEATURE_CACHE_BYTES, TOWER_ROWS, picture_bytes
from engine.model.inputs import Features, StepInputs
from engine.model.mrope import Grid, mrope_positions
from engine.model.qwen3_5 import Qwen3_5
from engine.model.vision import VisionTower
from engine.model.weights import load_model
from engine.request import Media
from engine.vision_config import VisionConfig
from tests.checkpoints import Oracle
from tests.engine.model.driver import Driver, Part, step_inputs
from tests.engine.picture_prompts import SIDE, Prompt, Shape, make_prompt, picture
from tests.engine.test_vision_config import RELEASED_TOWER

TOLERANCE = 1e-4
SHAPES = [Shape(1, 1), Shape(1, 7), Shape(5, 1), Shape(4, 4), Shape(3, 6), Shape(2, 3, 2)]


def pixels_of(media: Media) -> torch.Tensor:
    shape = (media.num_frames, media.height, media.width, 3)
    return torch.frombuffer(bytearray(media.pixels), dtype=torch.uint8).view(shape)


@dataclass(frozen=True)
class Tiny:
    config: ModelConfig
    model: Qwen3_5
    tower: VisionTower
    oracle: Oracle

    @torch.inference_mode()
    def features(self, media: Media) -> torch.Tensor:
        return self.tower.forward(pixels_of(media))

    @torch.inference_mode()
    def logits(self, prompt: Prompt, num_decoded: int = 0) -> torch.Tensor:
        """logits_TV: a prefill of all but the last `num_decoded` tokens, and these one by one."""
        grids = [Grid(one.start, one.height // SIDE, one.width // SIDE) for one in prompt.media]
        position_3X, shift = mrope_positions(grids)
        driver = Driver(self.model, self.config)
        sequence = driver.add(prompt.ids)
        num_prefilled = len(prompt.ids) - num_decoded
        inputs = step_inputs([Part(sequence, 0, num_prefilled)])
        position_3T = (inputs.position_T + shift).repeat(3, 1)
        position_3T[:, : position_3X.shape[1]] = torch.from_numpy(position_3X)
        features = Features(
            row_Z=torch.cat([torch.arange(grid.start, grid.end) for grid in grids]),
            feature_ZD=torch.cat([self.features(one) for one in prompt.media]),
        )
        steps = [replace(inputs, position_3T=position_3T, features=features)]
        for at in range(num_prefilled, len(prompt.ids)):
            inputs = step_inputs([Part(sequence, at, 1, decodes=True)])
            steps.append(replace(inputs, position_T=inputs.position_T + shift))
        return torch.cat([self._step(driver, inputs) for inputs in steps])

    def _step(self, driver: Driver, inputs: StepInputs) -> torch.Tensor:
        return self.model.logits(self.model.forward(inputs, driver.caches))


@pytest.fixture(scope="module")
def tiny(tiny_vision_dir: Path, tiny_vision_oracle: Oracle) -> Tiny:
    config = ModelConfig.from_dir(tiny_vision_dir)
    loaded = load_model(tiny_vision_dir, config, shows_progress=False)
    assert loaded.tower is not None
    return Tiny(config, loaded.model, loaded.tower, tiny_vision_oracle)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_are_transformers(tiny: Tiny, shape: Shape) -> None:
    media = picture(shape)
    found, expected = tiny.features(media), tiny.oracle.features(media)
    assert found.shape == (shape.height * shape.width, tiny.config.hidden_size)
    assert (found - expected).abs().max().item() < TOLERANCE
    assert 0.3 < expected.std().item() < 3  # of the size of embeddings


def test_every_patch_matters_to_every_token(tiny: Tiny) -> None:
    media = picture(Shape(3, 4))
    pixels = pixels_of(media)
    changed = pixels.clone()
    changed[0, -1, -1] ^= 128
    with torch.inference_mode():
        moved_M = (tiny.tower.forward(pixels) - tiny.tower.forward(changed)).abs().amax(dim=-1)
    assert bool((moved_M > 1e-5).all())


def test_rows_at_a_time_change_nothing(tiny: Tiny) -> None:
    """A picture of many rows is computed as one of few is."""
    assert tiny.config.vision is not None
    tower = VisionTower(
        tiny.config.vision,
        torch.float32,
        torch.device("cpu"),
        text_hidden_size=tiny.config.hidden_size,
        rows_at_once=12,
    )
    for place, source in zip(tower.places().values(), tiny.tower.places().values(), strict=True):
        place.copy_(source)
    media = picture(Shape(5, 4))  # 80 patches
    with torch.inference_mode():
        found = tower.forward(pixels_of(media))
    assert tower.num_pieces == 7 * (1 + 2 * 2 + 1)  # embedding, twice each block, merger
    torch.testing.assert_close(found, tiny.features(media), rtol=0, atol=1e-5)
    assert TOWER_ROWS % 4 == 0


def test_in_bf16_the_features_are_near(tiny: Tiny, tiny_vision_dir: Path) -> None:
    loaded = load_model(tiny_vision_dir, tiny.config, "bfloat16", shows_progress=False)
    assert loaded.tower is not None
    media = picture(Shape(4, 5))
    with torch.inference_mode():
        found = loaded.tower.forward(pixels_of(media))
    assert found.dtype == torch.bfloat16
    expected = tiny.oracle.features(media)
    assert (found - expected).norm() < 0.03 * expected.norm()


PROMPTS: dict[str, Sequence[int | Shape]] = {
    "first": [Shape(3, 5), 40],
    "middle": [70, Shape(4, 2), 33],
    "last": [20, Shape(6, 6)],
    "several": [5, Shape(2, 2), Shape(1, 6), 9, Shape(9, 8), 30],
    "video": [7, 3, Shape(3, 4, 2), 4, Shape(3, 4, 2), 4, Shape(3, 4, 2), 12],
    "image and video": [6, Shape(2, 3), 3, Shape(2, 2, 2), 3, Shape(2, 2, 2), 1],
}


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_are_transformers(tiny: Tiny, name: str) -> None:
    prompt = make_prompt(PROMPTS[name])
    found, expected = tiny.logits(prompt), tiny.oracle.logits(prompt.ids, prompt.media)
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() < TOLERANCE


def test_another_picture_gives_other_logits(tiny: Tiny) -> None:
    one, other = (make_prompt(PROMPTS["middle"], picture_seed=seed) for seed in (0, 1))
    assert one.ids == other.ids
    moved_T = (tiny.logits(one) - tiny.logits(other)).abs().amax(dim=-1)
    start = one.media[0].start
    assert moved_T[:start].max().item() == 0
    assert moved_T[start:].min().item() > 0.01
    assert moved_T[-1].item() > 0.1


def test_tokens_behind_a_picture_decode_with_its_shift(tiny: Tiny) -> None:
    prompt = make_prompt([10, Shape(5, 6), 30])
    found = tiny.logits(prompt, num_decoded=25)
    assert (found - tiny.oracle.logits(prompt.ids, prompt.media)).abs().max().item() < TOLERANCE


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that exist at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self._known:
                storage = x.untyped_storage()
                self._known.add(storage._cdata)
                self._now += storage.nbytes()
                self.most = max(self.most, self._now)
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        return result

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.remove(key)
        self._now -= num_bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_largest_picture_fits_in_what_is_reserved_for_it(dtype: torch.dtype) -> None:
    few_blocks = {"vision_config": RELEASED_TOWER | {"depth": 2}}
    config = VisionConfig.from_raw(few_blocks, text_hidden_size=2048)
    assert config is not None
    meta = torch.device("meta")
    tower = VisionTower(config, dtype, meta, text_hidden_size=2048)
    pixel = torch.empty(1, 4096, 4096, 3, dtype=torch.uint8, device=meta)
    with LiveBytes() as live, torch.inference_mode():
        feature_MD = tower.forward(pixel)
    assert feature_MD.shape == (16_384, 2048)
    reserved = picture_bytes(config, 2048, dtype_bytes=dtype.itemsize) - FEATURE_CACHE_BYTES
    assert reserved / 2.5 < live.most < reserved
