"""Features are found by content, and the least recently used go when there is no room."""

import msgspec
import torch

from engine.runner.feature_cache import FeatureCache, content_key
from tests.engine.picture_prompts import Shape, picture


def feature(num_tokens: int) -> torch.Tensor:
    return torch.zeros(num_tokens, 4)  # 16 bytes a token


def test_the_key_is_the_content() -> None:
    one = picture(Shape(2, 3), start=5)
    key = content_key(one)
    assert content_key(msgspec.structs.replace(one, start=9)) == key
    turned = msgspec.structs.replace(one, height=one.width, width=one.height)
    assert content_key(turned) != key
    changed = bytearray(one.pixels)
    changed[-1] ^= 1
    assert content_key(msgspec.structs.replace(one, pixels=bytes(changed))) != key
    clip = picture(Shape(2, 3, 2))
    as_image = msgspec.structs.replace(clip, num_frames=1, height=2 * clip.height)
    assert content_key(clip) != content_key(as_image)


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
