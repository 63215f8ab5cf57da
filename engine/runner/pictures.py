"""The pictures of each slot, from their pixels to the features that stand in for embeddings.

A picture is encoded when the first slice comes to its placeholders, not when its sequence is
admitted: so the steps before it are not held up, and of a long video few features exist at once.
Its features are let go when a slice has passed its end; the cache may still have them for whoever
brings the same picture. Its pixels belong to the request: they are only looked at here, and when a
request was cancelled there are none to see.

A picture that cannot be encoded costs its own request only: the others in the step do not know.
What the device cannot recover from is not caught here.

Letters: Z tokens of pictures in the step, M tokens of a picture, D hidden size.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import ref

import numpy as np
import torch

from engine.model.inputs import Features
from engine.model.mrope import Grid
from engine.plan import Slice
from engine.request import Media
from engine.runner.device import Device
from engine.runner.faults import is_device_lost
from engine.runner.feature_cache import FeatureCache

_log = logging.getLogger(__name__)


class Tower(Protocol):
    num_pieces: int  # of work done: grows while a picture is encoded

    @property
    def merged_size(self) -> int:
        """Pixels of a side of a token."""
        ...

    def forward(self, pixel: torch.Tensor, /) -> torch.Tensor:
        """feature_MD of uint8 [frames, height, width, 3]."""
        ...


@dataclass(slots=True)
class _Picture:
    grid: Grid
    media: "ref[Media]"
    feature_MD: torch.Tensor | None = None


class Pictures:
    def __init__(
        self, tower: Tower | None, device: Device, *, num_slots: int, cache_bytes: int
    ) -> None:
        """`num_slots` counts the scratch slot. Without a tower nobody may have pictures."""
        self._tower = tower
        self._device = device
        self._cache = FeatureCache(cache_bytes)
        self._ahead: list[list[_Picture]] = [[] for _ in range(num_slots)]  # not passed, in order

    @property
    def num_pieces(self) -> int:
        """Of encoding work since the start; may be read from another thread."""
        return 0 if self._tower is None else self._tower.num_pieces

    def admit(self, slot: int, media: Sequence[Media]) -> list[Grid]:
        """The slot has these pictures and no others. Returns where they stand."""
        assert self._tower is not None or not media, "this model has no vision tower"
        side = 1 if self._tower is None else self._tower.merged_size
        grids = [Grid(one.start, one.height // side, one.width // side) for one in media]
        self._ahead[slot] = [
            _Picture(grid, ref(one)) for grid, one in zip(grids, media, strict=True)
        ]
        return grids

    def features(self, slices: Sequence[Slice], unencoded: list[str]) -> Features | None:
        """What the slices' rows get instead of embeddings; None if there is no picture in them.

        Adds to `unencoded` whose pictures could not be encoded: their rows keep the embedding.
        """
        rows: list[range] = []
        found: list[torch.Tensor] = []
        row = 0
        for part in slices:
            end = part.start + part.num_tokens
            ahead = self._ahead[part.slot]
            for picture in ahead:
                first, last = max(part.start, picture.grid.start), min(end, picture.grid.end)
                if first >= last:
                    continue
                feature_MD = self._encoded(picture, part.request_id)
                if feature_MD is None:
                    unencoded.append(part.request_id)
                    break
                shift = row - part.start
                rows.append(range(first + shift, last + shift))
                found.append(feature_MD[first - picture.grid.start : last - picture.grid.start])
            if ahead:
                self._ahead[part.slot] = [one for one in ahead if one.grid.end > end]
            row += part.num_tokens
        if not found:
            return None
        row_Z = np.concatenate([np.arange(few.start, few.stop) for few in rows])
        return Features(self._device.upload(row_Z), torch.cat(found))

    def _encoded(self, picture: _Picture, request_id: str) -> torch.Tensor | None:
        """feature_MD, or None if that failed or the request is gone."""
        media = picture.media()
        if picture.feature_MD is not None or media is None:
            return picture.feature_MD
        picture.feature_MD = self._cache.get(media.digest)
        if picture.feature_MD is None:
            try:
                picture.feature_MD = self._encode(media)
            except (RuntimeError, MemoryError) as error:  # of memory, mostly
                if is_device_lost(error):
                    raise
                _log.error(
                    "a picture of %d x %d in request %s could not be encoded",
                    media.width,
                    media.height,
                    request_id,
                    exc_info=error,
                )
                return None
            self._cache.put(media.digest, picture.feature_MD)
        return picture.feature_MD

    def _encode(self, media: Media) -> torch.Tensor:
        assert self._tower is not None
        pixels = np.frombuffer(media.pixels, dtype=np.uint8).copy()  # torch wants it writable
        pixel = self._device.upload(pixels).view(media.num_frames, media.height, media.width, 3)
        return self._tower.forward(pixel)
