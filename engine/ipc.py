"""Frames between server and engine process: typed msgpack over a unix socket, never pickle.

The engine binds a ROUTER, each server process connects a DEALER. A frame is one tagged struct; what
does not decode to one of them is a broken invariant between two parts of the same program.
"""

import msgspec

from engine.client import EngineInfo, EngineStats
from engine.config import EngineConfig
from engine.request import Request, TokenDelta


class Start(msgspec.Struct, frozen=True):
    """First words to a new engine process, over its standard input."""

    config: EngineConfig
    address: str  # ipc:// endpoint to bind


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A server process is there; answered by Ready."""


class Submit(msgspec.Struct, frozen=True, tag=True):
    request: Request


class Cancel(msgspec.Struct, frozen=True, tag=True):
    request_id: str


class Forget(msgspec.Struct, frozen=True, tag=True):
    """A server process is gone, says the one that watches it; its requests are to be cancelled."""

    peer: bytes  # its routing id


class Ready(msgspec.Struct, frozen=True, tag=True):
    info: EngineInfo


class Deltas(msgspec.Struct, frozen=True, tag=True):
    deltas: tuple[TokenDelta, ...]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The request ended in an error; `code` is the `EngineError`'s."""

    request_id: str
    code: str
    message: str


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The engine's loop turns. Sent at least every `HEARTBEAT_S`, a running step or not."""

    stats: EngineStats
    has_work: bool


HEARTBEAT_S = 0.5

ToEngine = Hello | Submit | Cancel | Forget
ToServer = Ready | Deltas | Failed | Heartbeat

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder[ToEngine](ToEngine).decode
decode_to_server = msgspec.msgpack.Decoder[ToServer](ToServer).decode
