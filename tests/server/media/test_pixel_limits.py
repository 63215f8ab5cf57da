import json
from pathlib import Path

import pytest

from server.media import PixelLimits
from server.media.pixel_limits import FrameSampling


def test_what_a_checkpoint_does_not_say(tmp_path: Path):
    assert PixelLimits.from_dir(tmp_path) == PixelLimits(65_536, 16_777_216, 4_096, 25_165_824)


def test_areas_by_either_name(tmp_path: Path):
    image = tmp_path / "preprocessor_config.json"
    video = tmp_path / "video_preprocessor_config.json"
    image.write_text(
        json.dumps(
            {
                "size": {"shortest_edge": 100, "longest_edge": 200},
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            }
        )
    )
    video.write_text(json.dumps({"min_pixels": 300, "max_pixels": 400}))
    assert PixelLimits.from_dir(tmp_path) == PixelLimits(100, 200, 300, 400)
    image.write_text(json.dumps({"size": {"max_pixels": 70_000}}))
    assert PixelLimits.from_dir(tmp_path) == PixelLimits(65_536, 70_000, 300, 400)


def test_frames_of_a_video(tmp_path: Path):
    video = tmp_path / "video_preprocessor_config.json"
    video.write_text(json.dumps({"fps": 1, "min_frames": 2, "max_frames": 10_000}))
    assert PixelLimits.from_dir(tmp_path).sampling == FrameSampling(1.0, 2, 768)
    video.write_text(json.dumps({"fps": None, "min_frames": None}))
    assert PixelLimits.from_dir(tmp_path).sampling == FrameSampling()
    for fields in ({"fps": 0}, {"fps": "2"}, {"min_frames": 0}, {"min_frames": 9, "max_frames": 8}):
        video.write_text(json.dumps(fields))
        with pytest.raises(ValueError, match=video.name):
            PixelLimits.from_dir(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_mean": [0.48, 0.45, 0.4]},
        {"image_std": [0.5, 0.5, 0.25]},
        {"size": {"shortest_edge": 0}},
        {"size": {"longest_edge": "many"}},
        {"min_pixels": True},
        {"min_pixels": 200, "max_pixels": 100},
    ],
)
def test_refuses_what_it_cannot_do(tmp_path: Path, fields: dict[str, object]):
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (tmp_path / name).write_text(json.dumps(fields))
        with pytest.raises(ValueError, match=name):
            PixelLimits.from_dir(tmp_path)
        (tmp_path / name).unlink()
