import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (
    smart_resize as smart_resize_video,
)

from server.media.resize import image_size, video_size

SIDES = st.integers(2, 12_000)


@pytest.mark.parametrize(
    ("given_size", "size"),
    [
        ((1080, 1920), (1088, 1920)),
        ((480, 640), (480, 640)),
        ((100, 100), (256, 256)),
        ((48, 2400), (64, 2400)),
        ((80, 1200), (64, 1216)),  # 2.5 patches: rounded to the even number
        ((2, 400), (32, 3648)),
    ],
)
def test_sizes_of_images(given_size: tuple[int, int], size: tuple[int, int]):
    found = image_size(*given_size, factor=32, min_pixels=65_536, max_pixels=16_777_216)
    assert found == size


@given(SIDES, SIDES, st.integers(1, 1 << 18), st.integers(1 << 18, 1 << 24))
def test_images_as_the_checkpoints_preprocessor(height: int, width: int, least: int, most: int):
    assume(max(height, width) <= 200 * min(height, width))
    assert image_size(height, width, factor=32, min_pixels=least, max_pixels=most) == smart_resize(
        height, width, factor=32, min_pixels=least, max_pixels=most
    )


@given(st.integers(2, 768), SIDES, SIDES, st.sampled_from([(4096, 25_165_824), (1 << 20, 1 << 22)]))
def test_videos_as_the_checkpoints_preprocessor(
    num_frames: int, height: int, width: int, limits: tuple[int, int]
):
    assume(max(height, width) <= 150 * min(height, width))
    least, most = limits
    assert video_size(
        num_frames,
        height,
        width,
        temporal_factor=2,
        factor=32,
        min_pixels=least,
        max_pixels=most,
    ) == smart_resize_video(
        num_frames, height, width, factor=32, temporal_factor=2, min_pixels=least, max_pixels=most
    )


def test_a_lone_frame_counts_as_it_will_be_repeated():
    limits = {"temporal_factor": 2, "factor": 32, "min_pixels": 4096, "max_pixels": 25_165_824}
    assert video_size(1, 480, 640, **limits) == video_size(2, 480, 640, **limits)
