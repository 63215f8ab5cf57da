"""When pictures are encoded, which rows get what, and what is kept for how long.

The tower here says of each token which picture it is of and which token it is, so that every row
can be checked.
"""

import gc
import weakref
from functools import cache

import msgspec
import numpy as np
import pytest
import torch

from engine.plan import Slice
from engine.request import Media
from engine.runner.device import CpuDevice
from engine.runner.pictures import Pictures
from engine.runner.positions import SlotPositions
from tests.engine.runner.test_faults import LOST

SIDE = 8


class NumberTower:
    """feature_M2: the picture's first byte, and the number of the token."""

    merged_size = SIDE

    def __init__(self) -> None:
        self.num_pieces = 0
        self.encoded: list[int] = []
        self.error: Exception | None = None

    def forward(self, pixel: torch.Tensor) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        self.encoded.append(int(pixel[0, 0, 0, 0]))
        self.num_pieces += 1
        num_tokens = pixel.shape[1] * pixel.shape[2] // SIDE**2
        number_M = torch.arange(num_tokens, dtype=torch.float32)
        return torch.stack((torch.full_like(number_M, self.encoded[-1]), number_M), dim=1)


@cache  # requests own their pictures: somebody has to
def media(name: int, start: int, height: int, width: int) -> Media:
    pixels = bytes([name]) * (height * width * SIDE**2 * 3)
    return Media.of(start, 1, height * SIDE, width * SIDE, pixels)


def part(slot: int, start: int, num_tokens: int, *, decodes: bool = False) -> Slice:
    return Slice(
        request_id=f"r{slot}",
        epoch=0,
        slot=slot,
        start=start,
        num_tokens=num_tokens,
        token_ids=(),
        pages=(),
        decodes=decodes,
        samples=False,
    )


def make(cache_bytes: int = 1 << 20) -> tuple[Pictures, NumberTower]:
    tower = NumberTower()
    return Pictures(tower, CpuDevice(), num_slots=5, cache_bytes=cache_bytes), tower


def rows_of(pictures: Pictures, *slices: Slice) -> dict[int, tuple[int, int]]:
    """By row: which picture, and which of its tokens."""
    unencoded: list[str] = []
    features = pictures.features(slices, unencoded)
    assert unencoded == []
    if features is None:
        return {}
    rows = features.row_Z.tolist()
    assert len(set(rows)) == len(rows)
    values = [(int(a), int(b)) for a, b in features.feature_ZD.tolist()]
    return dict(zip(rows, values, strict=True))


def test_rows_of_a_mixed_step() -> None:
    pictures, tower = make()
    pictures.admit(1, ())
    pictures.admit(2, (media(20, 2, 1, 3), media(21, 6, 2, 2)))
    pictures.admit(3, (media(30, 0, 2, 1),))
    found = rows_of(
        pictures, part(4, 9, 1, decodes=True), part(1, 0, 5), part(2, 0, 11), part(3, 0, 4)
    )
    assert found == {
        **{6 + 2 + i: (20, i) for i in range(3)},
        **{6 + 6 + i: (21, i) for i in range(4)},
        **{17 + i: (30, i) for i in range(2)},
    }
    assert tower.encoded == [20, 21, 30]


def test_a_picture_is_encoded_when_a_slice_comes_to_it_and_once() -> None:
    pictures, tower = make(cache_bytes=0)
    pictures.admit(1, (media(5, 10, 4, 5), media(6, 40, 1, 1)))
    assert rows_of(pictures, part(1, 0, 10)) == {}
    assert tower.encoded == []
    assert rows_of(pictures, part(1, 10, 1)) == {0: (5, 0)}
    assert rows_of(pictures, part(1, 11, 8)) == {i: (5, 1 + i) for i in range(8)}
    assert tower.encoded == [5]
    last = rows_of(pictures, part(1, 19, 22))
    assert last == {**{i: (5, 9 + i) for i in range(11)}, 21: (6, 0)}
    assert tower.encoded == [5, 6]
    assert rows_of(pictures, part(1, 41, 1, decodes=True)) == {}


def test_a_resumed_sequence_and_an_equal_picture_are_not_encoded_again() -> None:
    pictures, tower = make()
    pictures.admit(1, (media(5, 1, 2, 2),))
    rows_of(pictures, part(1, 0, 3))
    pictures.admit(2, (media(5, 1, 2, 2),))  # the same sequence in another slot
    assert rows_of(pictures, part(2, 0, 6)) == {1 + i: (5, i) for i in range(4)}
    pictures.admit(1, (media(5, 3, 2, 2),))
    assert rows_of(pictures, part(1, 0, 7)) == {3 + i: (5, i) for i in range(4)}
    assert tower.encoded == [5]


def test_a_new_owner_of_a_slot_has_none_of_the_old_pictures() -> None:
    pictures, tower = make()
    pictures.admit(1, (media(5, 1, 2, 2),))
    pictures.admit(1, ())
    assert rows_of(pictures, part(1, 0, 9)) == {}
    assert tower.encoded == []


def test_features_are_let_go_when_they_are_passed() -> None:
    pictures, _ = make(cache_bytes=0)
    pictures.admit(1, (media(5, 1, 2, 2),))
    features = pictures.features((part(1, 0, 3),), [])
    assert features is not None
    kept = weakref.ref(pictures._ahead[1][0].feature_MD)
    del features
    gc.collect()
    assert kept() is not None
    rows_of(pictures, part(1, 3, 2))
    gc.collect()
    assert kept() is None


def test_a_cancelled_request_takes_its_pixels_with_it() -> None:
    pictures, tower = make()
    own = msgspec.structs.replace(media(5, 1, 2, 2))
    pictures.admit(1, (own,))
    pixels = weakref.ref(own)
    del own
    gc.collect()
    assert pixels() is None
    unencoded: list[str] = []  # of a slice that was planned before
    assert pictures.features((part(1, 0, 3),), unencoded) is None
    assert unencoded == ["r1"]
    assert tower.encoded == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), MemoryError()])
def test_a_failure_is_its_request_s_own(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    pictures, tower = make()
    pictures.admit(1, (media(5, 1, 2, 2),))
    pictures.admit(2, (media(6, 0, 1, 1),))
    rows_of(pictures, part(2, 0, 1))
    pictures.admit(2, (media(6, 0, 1, 1),))
    tower.error = error
    unencoded: list[str] = []
    features = pictures.features((part(1, 0, 3), part(2, 0, 2)), unencoded)
    assert unencoded == ["r1"]
    assert features is not None
    assert features.row_Z.tolist() == [3]
    assert "16 x 16 in request r1 could not be encoded" in caplog.text
    pictures.features((part(1, 3, 3),), unencoded)  # planned before that was known
    assert unencoded == ["r1", "r1"]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_a_broken_device_is_not_a_failed_picture(error: RuntimeError) -> None:
    pictures, tower = make()
    pictures.admit(1, (media(5, 1, 2, 2),))
    tower.error = error
    with pytest.raises(RuntimeError) as raised:
        pictures.features((part(1, 0, 3),), [])
    assert raised.value is error


def test_pixels_that_are_not_what_was_said_fail_the_picture() -> None:
    pictures, _ = make()
    short = msgspec.structs.replace(media(5, 1, 2, 2), pixels=b"123")
    pictures.admit(1, (short,))
    unencoded: list[str] = []
    assert pictures.features((part(1, 0, 3),), unencoded) is None
    assert unencoded == ["r1"]


def test_positions_of_slices() -> None:
    pictures, _ = make()
    positions = SlotPositions(5)
    positions.admit(1, pictures.admit(1, ()))
    positions.admit(2, pictures.admit(2, (media(5, 2, 2, 3),)))  # two words, then six tokens

    def of(*slices: Slice) -> tuple[list[int], list[list[int]] | None]:
        index_T = np.concatenate([np.arange(p.start, p.start + p.num_tokens) for p in slices])
        position_T, position_3T = positions.of(slices, index_T)
        return position_T.tolist(), None if position_3T is None else position_3T.tolist()

    assert of(part(1, 0, 4)) == ([0, 1, 2, 3], None)
    _, streams = of(part(1, 7, 1, decodes=True), part(2, 1, 9), part(1, 0, 1))
    assert streams == [
        [7, 1, 2, 2, 2, 2, 2, 2, 5, 6, 0],
        [7, 1, 2, 2, 2, 3, 3, 3, 5, 6, 0],
        [7, 1, 2, 3, 4, 2, 3, 4, 5, 6, 0],
    ]
    _, streams = of(part(2, 0, 3))
    assert streams == [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    assert of(part(2, 8, 3)) == ([5, 6, 7], None)
    assert of(part(1, 8, 1, decodes=True), part(2, 20, 1, decodes=True)) == ([8, 17], None)
    positions.admit(2, [])
    assert of(part(2, 8, 3)) == ([8, 9, 10], None)
