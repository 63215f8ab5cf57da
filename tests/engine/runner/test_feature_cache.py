"""Features are found by content, and the least recently used go when there is no room."""

import torch

from engine.request import Media
from engine.runner.feature_cache import FeatureCache
from tests.engine.picture_prompts import Shape, picture


def feature(num_tokens: int) -> torch.Tensor:
    return torch.zeros(num_tokens, 4)  # 16 bytes a token


def test_the_digest_is_of_the_content() -> None:
    one = picture(Shape(2, 3), start=5)
    assert Media.of(9, 1, one.height, one.width, one.pixels).digest == one.digest
    assert Media.of(5, 1, one.width, one.height, one.pixels).digest != one.digest
    changed = bytearray(one.pixels)
    changed[-1] ^= 1
    assert Media.of(5, 1, one.height, one.width, bytes(changed)).digest != one.digest
    clip = picture(Shape(2, 3, 2))
    as_image = Media.of(0, 1, 2 * clip.height, clip.width, clip.pixels)
    assert clip.digest != as_image.digest


def test_the_least_recently_used_goes_first() -> None:
    cache = FeatureCache(max_bytes=160)
    one, two, three = feature(4), feature(4), feature(3)
    cache.put(b"one", one)
    cache.put(b"two", two)
    assert cache.num_bytes == 128
    assert cache.get(b"one") is one
    cache.put(b"three", three)
    assert cache.get(b"two") is None
    assert cache.get(b"one") is one
    assert cache.get(b"three") is three
    assert cache.num_bytes == 112
    cache.put(b"all", feature(10))
    assert cache.get(b"one") is cache.get(b"three") is None
    assert cache.num_bytes == 160


def test_what_is_too_large_is_not_kept_and_drives_nobody_out() -> None:
    cache = FeatureCache(max_bytes=64)
    kept = feature(4)
    cache.put(b"kept", kept)
    cache.put(b"large", feature(5))
    assert cache.get(b"large") is None
    assert cache.get(b"kept") is kept


def test_putting_twice_counts_once() -> None:
    cache = FeatureCache(max_bytes=64)
    cache.put(b"one", feature(2))
    cache.put(b"one", feature(2))
    assert cache.num_bytes == 32
