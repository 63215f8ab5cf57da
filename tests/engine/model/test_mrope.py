"""Positions of prompts with pictures against transformers' own."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.model.mrope import Grid, mrope_positions


def theirs(kinds: list[int], images: list[Any], videos: list[Any]) -> tuple[torch.Tensor, int]:
    """position_3T and the shift, of a prompt whose tokens are of these kinds."""
    from transformers import Qwen3_5Model

    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
    model = Qwen3_5Model.__new__(Qwen3_5Model)
    torch.nn.Module.__init__(model)
    model.config = config
    position_3BT, shift_B1 = model.get_rope_index(
        torch.zeros(1, len(kinds), dtype=torch.int64),
        torch.tensor([kinds]),
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor(videos) if videos else None,
    )
    return position_3BT[:, 0], int(shift_B1)


def compare(kinds: list[int], grids: list[Grid], images: list[Any], videos: list[Any]) -> None:
    expected_3T, expected_shift = theirs(kinds, images, videos)
    position_3X, shift = mrope_positions(grids)
    num_behind = len(kinds) - position_3X.shape[1]
    behind_T = torch.arange(position_3X.shape[1], len(kinds)) + shift
    found_3T = torch.cat((torch.from_numpy(position_3X), behind_T.repeat(3, 1)), dim=1)
    assert torch.equal(found_3T, expected_3T)
    assert shift == expected_shift
    assert num_behind == 0 or position_3X.shape[1] == grids[-1].end


@pytest.mark.parametrize("seed", range(30))
def test_images_and_videos_among_text(seed: int) -> None:
    rng = random.Random(seed)
    kinds = [0] * rng.randint(0, 5)
    grids: list[Grid] = []
    images: list[list[int]] = []
    videos: list[list[int]] = []
    for _ in range(rng.randint(1, 5)):
        height, width = rng.randint(1, 9), rng.randint(1, 9)
        is_video = rng.random() < 0.5
        num_parts = rng.randint(1, 4) if is_video else 1
        (videos if is_video else images).append([num_parts, 2 * height, 2 * width])
        for _ in range(num_parts):
            grids.append(Grid(len(kinds), height, width))
            kinds += [2 if is_video else 1] * (height * width) + [0] * rng.randint(1, 6)
    if rng.random() < 0.3:
        del kinds[grids[-1].end :]  # the picture comes last
    compare(kinds, grids, images, videos)


def test_a_picture_by_hand() -> None:
    position_3X, shift = mrope_positions([Grid(2, 2, 3)])
    assert position_3X.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2],
        [0, 1, 2, 2, 2, 3, 3, 3],
        [0, 1, 2, 3, 4, 2, 3, 4],
    ]
    assert shift == 2 + 3 - 8


def test_text_has_no_streams_of_its_own() -> None:
    position_3X, shift = mrope_positions([])
    assert position_3X.shape == (3, 0)
    assert shift == 0
