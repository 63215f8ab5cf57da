"""What the parent and its workers say to each other: typed msgpack frames, never pickle.

A frame is its length in four bytes and one tagged struct. The parent's first one is `Start`. A
`Call` is answered by one `Answer` of the same number; all other messages stand alone.
"""

import struct

import msgspec

from server.assembly import FrontSettings
from server.metric_sums import Family
from server.responses import StoredItem

LENGTH = struct.Struct("<I")


class Start(msgspec.Struct, frozen=True, tag=True):
    name: bytes  # by which the engine knows the worker
    settings: FrontSettings
    path: str  # of a unix socket on which other workers reach this one
    waits: bool  # for AllReady before it listens, since others take work already


class EngineStarted(msgspec.Struct, frozen=True, tag=True):
    address: str  # where an engine process listens, or will


class EngineGone(msgspec.Struct, frozen=True, tag=True):
    why: str


class AllReady(msgspec.Struct, frozen=True, tag=True):
    """All workers have a link to the running engine: probes may say so."""


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Take no new work, finish what runs, end."""


class AskMetrics(msgspec.Struct, frozen=True, tag=True):
    """Answered by MetricsReport; a worker that does not answer for long is stuck."""


class Listening(msgspec.Struct, frozen=True, tag=True):
    """The worker answers requests, if only by 503."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker has a link to the engine process that listens at `address`."""

    address: str


class MetricsReport(msgspec.Struct, frozen=True, tag=True):
    families: tuple[Family, ...]


class GetResponse(msgspec.Struct, frozen=True, tag=True):
    owner: bytes
    id: str


class GetItem(msgspec.Struct, frozen=True, tag=True):
    owner: bytes
    id: str


class DeleteResponse(msgspec.Struct, frozen=True, tag=True):
    owner: bytes
    id: str


class ResponseRecord(msgspec.Struct, frozen=True):
    id: str
    owner: bytes
    body: bytes
    input_items: tuple[StoredItem, ...]
    output_items: tuple[StoredItem, ...]


class AddResponse(msgspec.Struct, frozen=True, tag=True):
    """`earlier`, the items of all turns before, is there when `previous_id` is not found."""

    response: ResponseRecord
    previous_id: str | None
    earlier: tuple[StoredItem, ...] | None = None


class RunsResponse(msgspec.Struct, frozen=True, tag=True):
    """Says that a response began to run in the background of this worker."""

    id: str


class FindRunner(msgspec.Struct, frozen=True, tag=True):
    """Asks which worker runs a response in the background, or did."""

    id: str


class Scrape(msgspec.Struct, frozen=True, tag=True):
    """Asks for the metrics of the whole server, as text."""


Ask = GetResponse | GetItem | DeleteResponse | AddResponse | RunsResponse | FindRunner | Scrape


class FoundResponse(msgspec.Struct, frozen=True, tag=True):
    response: ResponseRecord
    earlier: tuple[StoredItem, ...] | None  # of all turns before; None: it is the first


class Text(msgspec.Struct, frozen=True, tag=True):
    """An item's JSON, or the metrics."""

    text: bytes


class Runner(msgspec.Struct, frozen=True, tag=True):
    path: str  # as in its Start


class Done(msgspec.Struct, frozen=True, tag=True):
    """What was asked is done; or, if not `found`, what it was about is not there."""

    found: bool


Result = FoundResponse | Text | Runner | Done


class Call(msgspec.Struct, frozen=True, tag=True):
    number: int
    ask: Ask


class Answer(msgspec.Struct, frozen=True, tag=True):
    number: int
    result: Result


ToWorker = Start | EngineStarted | EngineGone | AllReady | Drain | AskMetrics | Answer
ToParent = Listening | Ready | MetricsReport | Call

_encode = msgspec.msgpack.Encoder().encode
decode_to_worker = msgspec.msgpack.Decoder[ToWorker](ToWorker).decode
decode_to_parent = msgspec.msgpack.Decoder[ToParent](ToParent).decode


def frame(message: ToWorker | ToParent) -> bytes:
    body = _encode(message)
    return LENGTH.pack(len(body)) + body
