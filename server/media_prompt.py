"""Prompts with images and videos: each placeholder a template wrote becomes the model's tokens.

A template writes `<|vision_start|><|image_pad|><|vision_end|>` for an image; of that the pad is
repeated, once for each merged patch. For a video it writes the same with `<|video_pad|>`, and all
three are replaced: each temporal patch is `<1.5 seconds><|vision_start|>`, its pads, and
`<|vision_end|>`, as in Qwen's own processor.

What people write never counts. `Guard` puts random text of the same length in place of pads in
everything a template is given, so that all pads in what it renders are its own, and puts them back
into the text around them. Text is tokenised from pad to pad. That is exact: pads are added tokens,
at which a tokenizer cuts text before it does anything else.
"""

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, cast

from engine import Media, VisionConfig
from server.errors import BadRequest
from server.media.loaded import LoadedMedia, MediaKind, Picture
from server.tokenizer import Tokenizer


class Guard:
    """Hides names from a template, and puts them back. Each has stand-ins of its own."""

    def __init__(self, names: Sequence[str]) -> None:
        self._stand_ins = {name: secrets.token_hex(len(name))[: len(name)] for name in names}

    def hide(self, value: Any) -> Any:
        """A JSON value without the names."""
        if isinstance(value, str):
            for name, stand_in in self._stand_ins.items():
                value = value.replace(name, stand_in)
            return value
        if isinstance(value, dict):
            fields = cast(dict[str, Any], value)
            return {self.hide(name): self.hide(field) for name, field in fields.items()}
        if isinstance(value, list):
            return [self.hide(item) for item in cast(list[Any], value)]
        return value

    def restore(self, text: str) -> str:
        for name, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, name)
        return text


class MediaPrompt:
    """Knows the placeholders of a tokenizer and a tower."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vision: VisionConfig,
        *,
        encode: Callable[[str, bool], list[int]],
    ) -> None:
        """`encode` is one of the tokenizer's two."""
        self._encode = encode
        self._merged_size = vision.merged_size
        self._pad_ids: dict[MediaKind, int] = {
            "image": vision.image_token_id,
            "video": vision.video_token_id,
        }
        self._start = tokenizer.token_str(vision.vision_start_token_id)
        self._end = tokenizer.token_str(vision.vision_end_token_id)
        self._image_pad = tokenizer.token_str(vision.image_token_id)
        self._video_pad = tokenizer.token_str(vision.video_token_id)
        whole_video = self._start + self._video_pad + self._end
        spots = (whole_video, self._image_pad, self._video_pad)
        self._spot = re.compile("|".join(map(re.escape, spots)))
        ids = (*self._pad_ids.values(), vision.vision_start_token_id, vision.vision_end_token_id)
        self.is_usable = all(map(tokenizer.is_special, ids))  # else the tokenizer is another's

    def guard(self) -> Guard:
        return Guard((self._image_pad, self._video_pad))

    def encode(
        self, rendered: str, media: Sequence[LoadedMedia], guard: Guard, *, add_special_tokens: bool
    ) -> tuple[list[int], tuple[Media, ...]]:
        """The ids of a prompt rendered from guarded values, and where its pictures are in them.

        `media` are in the order of the conversation; at least one.
        """
        spots = list(self._spot.finditer(rendered))
        if [self._kind_of(spot) for spot in spots] != [item.kind for item in media]:
            raise BadRequest(
                "messages: the chat template dropped or moved an image or a video", param="messages"
            )
        ids: list[int] = []
        placed: list[Media] = []
        text = ""  # what is not tokenised yet
        end = 0
        for spot, item in zip(spots, media, strict=True):
            text += guard.restore(rendered[end : spot.start()])
            end = spot.end()
            for picture in item.pictures:
                if picture.second is not None:
                    text += f"<{picture.second:.1f} seconds>{self._start}"
                ids += self._encode(text, add_special_tokens and not placed)
                placed.append(_media(picture, start=len(ids)))
                ids += [self._pad_ids[item.kind]] * self._num_pads(picture)
                text = self._end if item.kind == "video" else ""
        ids += self._encode(text + guard.restore(rendered[end:]), False)
        return ids, tuple(placed)

    def _kind_of(self, spot: re.Match[str]) -> MediaKind:
        return "image" if spot[0] == self._image_pad else "video"

    def _num_pads(self, picture: Picture) -> int:
        return (picture.height // self._merged_size) * (picture.width // self._merged_size)


def _media(picture: Picture, *, start: int) -> Media:
    return Media.of(start, picture.num_frames, picture.height, picture.width, picture.pixels)
