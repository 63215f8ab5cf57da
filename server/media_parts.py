"""Images and videos as the content parts of chat messages name them.

A part is text, or says where an image or a video is; the latter in user and tool messages only, as
in the models' own templates. What stands at the address is `server.media`'s business, and whether
the model takes it at all is the validator's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from server.errors import BadRequest
from server.media.loaded import LoadedMedia, MediaKind, MediaRef
from server.protocol import ChatMessage

# The type of a part, which is also the name of the field that holds the address.
MEDIA_KINDS: dict[str, MediaKind] = {
    "image_url": "image",
    "image": "image",
    "video_url": "video",
    "video": "video",
}
REFUSED_TYPES = ("input_audio", "audio_url", "file")
MEDIA_ROLES = ("user", "tool")

MediaKey = tuple[MediaKind, str]  # what it is and its URL: named twice, it is loaded once
LoadedByKey = Mapping[MediaKey, LoadedMedia]


def key_of(ref: MediaRef) -> MediaKey:
    return ref.kind, ref.url


def media_refs(messages: Sequence[ChatMessage]) -> list[MediaRef]:
    """What the parts of a chat refer to, in order. Raises BadRequest for parts that are malformed.

    Text parts are not looked at.
    """
    return [
        _media_ref(part, f"messages.{index}.content.{number}", message.role)
        for index, message in enumerate(messages)
        if isinstance(message.content, list)
        for number, part in enumerate(message.content)
        if _is_media(part)
    ]


def read_part(part: dict[str, Any], path: str, role: str) -> str | MediaRef:
    """The text of a part, or what it refers to. Raises BadRequest for any other."""
    if _is_media(part):
        return _media_ref(part, path, role)
    kind = part.get("type")
    if kind in REFUSED_TYPES:
        raise BadRequest(f"{path}: audio and file parts are not supported", param=path)
    if kind != "text":
        raise BadRequest(
            f'{path}.type must be "text", "image_url" or "video_url"', param=f"{path}.type"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise BadRequest(f"{path}.text must be a string", param=f"{path}.text")
    return text


def _is_media(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    return isinstance(kind, str) and kind in MEDIA_KINDS


def _media_ref(part: dict[str, Any], path: str, role: str) -> MediaRef:
    name: str = part["type"]
    if role not in MEDIA_ROLES:
        raise BadRequest(
            f"{path}: only user and tool messages may hold images and videos", param=path
        )
    at = f"{path}.{name}"
    given = part.get(name)
    if isinstance(given, dict):
        fields = cast(dict[str, Any], given)
        if not isinstance(fields.get("detail", ""), str | None):
            raise BadRequest(f"{at}.detail must be a string", param=f"{at}.detail")
        at += ".url"
        given = fields.get("url")
    if not isinstance(given, str) or not given:
        raise BadRequest(f"{at} must be a URL", param=at)
    return MediaRef(MEDIA_KINDS[name], given, path)
