"""Images and videos of a request: fetched, decoded and resized, under limits.

loader        `MediaRef`s of a request -> `LoadedMedia`: the way in
access        what the operator lets a client name
source        data:, http(s): and file: URLs -> bytes; `fetch` is the download
decoder       hands the bytes to a process that can be killed (`worker`)
image, video  bytes -> pictures, in that process; sizes from `resize`
pixel_limits  what the checkpoint says about sizes and frames
unusable      why a medium is refused
"""

from server.media.access import MediaAccess
from server.media.loaded import LoadedMedia, MediaKind, MediaRef, Picture
from server.media.loader import MediaLoader
from server.media.pixel_limits import PixelLimits

__all__ = [
    "LoadedMedia",
    "MediaAccess",
    "MediaKind",
    "MediaLoader",
    "MediaRef",
    "Picture",
    "PixelLimits",
]
