from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from server.limits import Limits
from server.media.loaded import Picture
from server.media.pixel_limits import FrameSampling
from server.media.unusable import Unusable
from server.media.video import read_video, sampled_indices
from tests.server.media.samples import grey_video

LIMITS: dict[str, Any] = {
    "temporal_factor": 2,
    "factor": 32,
    "min_pixels": 4096,
    "max_pixels": 25_165_824,
    "sampling": FrameSampling(),
}


def frames_of(pictures: list[Picture]) -> np.ndarray:
    return np.concatenate(
        [
            np.frombuffer(p.pixels, dtype=np.uint8).reshape(p.num_frames, p.height, p.width, 3)
            for p in pictures
        ]
    )


def indices_of(pictures: list[Picture]) -> list[int]:
    """Which frames of a grey video these are, by their grey."""
    return [round(float(frame[32:, 32:].mean()) / 2) for frame in frames_of(pictures)]


@given(
    st.integers(1, 100_000),
    st.sampled_from([0.5, 10.0, 24.0, 25.0, 29.97, 60.0, 1e-9, 1e9]),
    st.sampled_from([FrameSampling(), FrameSampling(0.5, 1, 8), FrameSampling(4.0, 16, 100)]),
)
def test_frames_as_the_checkpoints_preprocessor(total: int, fps: float, sampling: FrameSampling):
    class Sampler:
        num_frames = None
        fps, min_frames, max_frames = sampling.per_s, sampling.minimum, sampling.maximum

    expected = Qwen3VLVideoProcessor.sample_frames(
        Sampler(),  # the class needs torchvision to be built, its method does not
        VideoMetadata(total_num_frames=total, fps=fps),
    )
    assert sampled_indices(total, fps, sampling) == expected.tolist()


@pytest.mark.parametrize(
    ("format", "codec"),
    [
        ("mp4", "libx264"),
        ("mov", "mpeg4"),
        ("webm", "libvpx-vp9"),
        ("webm", "libvpx"),
        ("matroska", "libx265"),
        ("mp4", "libsvtav1"),
    ],
)
def test_two_frames_of_every_second(format: str, codec: str):
    pictures = read_video(grey_video(60, format=format, codec=codec), **LIMITS)
    indices = sampled_indices(60, 10.0, FrameSampling())
    assert len(indices) == 12
    found = np.array(indices_of(pictures))
    assert np.abs(found - indices).max() <= 1  # as near as lossy greys tell
    assert [(p.num_frames, p.height, p.width) for p in pictures] == [(2, 64, 64)] * 6
    expected = Qwen3VLProcessor._calculate_timestamps(None, indices, 10.0)
    assert [p.second for p in pictures] == pytest.approx(expected)


def test_an_odd_count_repeats_the_last_frame():
    pictures = read_video(grey_video(5, rate=2), **LIMITS)
    assert [p.second for p in pictures] == [0.25, 1.25, 2.0]
    assert indices_of(pictures)[-2:] == [4, 4]
    lone = read_video(grey_video(1), **LIMITS)
    assert [(p.num_frames, p.second) for p in lone] == [(2, 0.0)]


def test_the_limit_of_pixels_is_for_all_frames_together():
    limits = LIMITS | {"max_pixels": 4 * 96 * 96}
    pictures = read_video(grey_video(4, width=320, height=320), **limits)
    assert [(p.height, p.width) for p in pictures] == [(96, 96)] * 2


def test_turned_as_the_container_says():
    data = grey_video(4, width=128, height=64)
    start = data.index(b"tkhd") + 4 + 40
    unit = (1 << 16).to_bytes(4, "big")
    assert data[start : start + 4] == unit
    zero, minus, last = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True), (1 << 30)
    turned = (zero, unit, zero, minus, zero, zero, zero, zero, last.to_bytes(4, "big"))
    lying = data[:start] + b"".join(turned) + data[start + 36 :]
    pictures = read_video(lying, **LIMITS)
    assert (pictures[0].height, pictures[0].width) == (128, 64)
    first = frames_of(pictures)[0]
    assert first[4:20, -12:-4].min() > 200  # the white corner came to the right
    assert first[4:20, 4:12].max() < 50


def test_a_container_may_promise_more_frames_than_it_has():
    data = grey_video(40)
    sizes = data.index(b"stsz") + 12
    assert int.from_bytes(data[sizes : sizes + 4], "big") == 40
    empty = sizes + 4 + 4 * 20
    pictures = read_video(data[:empty] + bytes(4 * 20) + data[empty + 4 * 20 :], **LIMITS)
    assert (
        np.abs(np.array(indices_of(pictures)) - sampled_indices(20, 10.0, FrameSampling())).max()
        <= 1
    )
    assert [p.second for p in pictures] == [0.3, 1.6]


def test_a_video_that_breaks_off_is_read_as_far_as_it_goes():
    whole = grey_video(400, rate=20, format="matroska")
    cut = read_video(whole[: len(whole) // 2], **LIMITS)
    assert 4 <= frames_of(cut).shape[0] < 40


def test_a_video_of_too_many_pixels():
    few = Limits(max_video_pixels=4 * 64 * 64)
    assert len(read_video(grey_video(4), **LIMITS, limits=few)) == 2
    with pytest.raises(Unusable, match="in all"):
        read_video(grey_video(40), **LIMITS, limits=few)


def test_frames_too_long_or_of_other_codecs():
    with pytest.raises(Unusable, match="200 times"):
        read_video(grey_video(4, width=4096, height=16), **LIMITS)
    with pytest.raises(Unusable, match=r"H\.264"):
        read_video(grey_video(4, codec="ffv1", format="matroska"), **LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"RIFF\0\0\0\0AVI LIST",
        b"",
    ],
)
def test_containers_that_are_not_known(data: bytes):
    with pytest.raises(Unusable, match="is not an MP4"):
        read_video(data, **LIMITS)
