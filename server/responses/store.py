"""Ended responses, kept in memory so that they can be read again and continued.

What is kept: a response that ended (completed or incomplete) and was asked to be stored, with the
input items of its request, as JSON bytes. One that failed or whose client went away is not kept,
unless it ran in the background. Nothing outlives the process.

The rule of the bounds: at most `max_responses` can be found by id, and all that is kept takes at
most `max_bytes`. Past either, the response used longest ago goes; being read, continued or created
is a use. A response holds on to the one it continues, so a conversation can be rebuilt as long as
its last response is kept: an earlier one that was deleted or that had to go is no longer found by
id, but its items stay, and count once, until nothing continues it. A response whose conversation
alone is larger than `max_bytes` is not kept.

Owners are told apart: an id is found only by the owner it was stored for.

`ResponseKeeper` is what the rest of the package uses, and on the event loop through `off_loop`.
Where several processes answer requests, the store is in one of them, and the others ask it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from threading import Lock
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_RESPONSES = 4096
MAX_BYTES = 256 << 20
RESPONSE_OVERHEAD = 1024  # bytes of our own objects, roughly, besides the JSON
ITEM_OVERHEAD = 512


class StoredItem(NamedTuple):
    id: str
    json: bytes


class StoredResponse:
    """One response. Its content never changes; `num_holders` is the store's."""

    __slots__ = (
        "body",
        "chain_bytes",
        "id",
        "input_items",
        "num_bytes",
        "num_holders",
        "output_items",
        "owner",
        "previous",
    )

    def __init__(
        self,
        response_id: str,
        owner: bytes,
        *,
        body: bytes,
        input_items: tuple[StoredItem, ...],
        output_items: tuple[StoredItem, ...],
        previous: "StoredResponse | None",
    ) -> None:
        """`body` is the response object; the items are those of this turn only."""
        self.id = response_id
        self.owner = owner
        self.body = body
        self.input_items = input_items
        self.output_items = output_items
        self.previous = previous
        self.num_bytes = (
            RESPONSE_OVERHEAD
            + len(body)
            + sum(ITEM_OVERHEAD + len(item.id) + len(item.json) for item in self.items)
        )
        self.chain_bytes: int = self.num_bytes + (previous.chain_bytes if previous else 0)
        self.num_holders = 0  # being found by id is one, each response that continues this another

    @property
    def items(self) -> tuple[StoredItem, ...]:
        return self.input_items + self.output_items

    def context(self) -> list[StoredItem]:
        """The items the model saw before it answered, in order."""
        turns = list(self._turns())
        earlier = [item for turn in reversed(turns[1:]) for item in turn.items]
        return [*earlier, *self.input_items]

    def _turns(self) -> "Iterator[StoredResponse]":
        turn: StoredResponse | None = self
        while turn is not None:
            yield turn
            turn = turn.previous


class ResponseKeeper(Protocol):
    """Every method may be called from any thread, and may block: not to be called on a loop."""

    def add(self, response: StoredResponse) -> None: ...

    def get(self, owner: bytes, response_id: str) -> StoredResponse | None: ...

    def item(self, owner: bytes, item_id: str) -> bytes | None:
        """The JSON of an input or output item of any response that can be found."""
        ...

    def delete(self, owner: bytes, response_id: str) -> bool:
        """Forget a response. False: there is none."""
        ...

    def began(self, response_id: str) -> None:
        """From here on a response runs in the background of this process."""
        ...


class ResponseStore:
    """The `ResponseKeeper` of this process, which never blocks for long."""

    def __init__(self, *, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()  # last used last
        self._holders_of_items: dict[tuple[bytes, str], StoredResponse] = {}
        self._num_bytes = 0
        self._lock = Lock()

    @property
    def num_responses(self) -> int:
        """Those that can be found by id."""
        return len(self._responses)

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def add(self, response: StoredResponse) -> None:
        with self._lock:
            if response.chain_bytes > self._max_bytes:
                return
            self._responses[response.id] = response
            for item in response.items:
                self._holders_of_items[response.owner, item.id] = response
            self._hold(response)
            while len(self._responses) > self._max_responses or self._num_bytes > self._max_bytes:
                self._remove(next(iter(self._responses.values())))

    def get(self, owner: bytes, response_id: str) -> StoredResponse | None:
        with self._lock:
            return self._use(owner, response_id)

    def item(self, owner: bytes, item_id: str) -> bytes | None:
        with self._lock:
            response = self._holders_of_items.get((owner, item_id))
            if response is None:
                return None
            self._responses.move_to_end(response.id)
            return next(item.json for item in response.items if item.id == item_id)

    def delete(self, owner: bytes, response_id: str) -> bool:
        with self._lock:
            response = self._use(owner, response_id)
            if response is None:
                return False
            self._remove(response)
            return True

    def began(self, response_id: str) -> None:
        pass  # whoever asks for it is in this process too

    def _use(self, owner: bytes, response_id: str) -> StoredResponse | None:
        response = self._responses.get(response_id)
        if response is None or response.owner != owner:
            return None
        self._responses.move_to_end(response_id)
        return response

    def _remove(self, response: StoredResponse) -> None:
        del self._responses[response.id]
        for item in response.items:
            key = (response.owner, item.id)
            if self._holders_of_items.get(key) is response:
                del self._holders_of_items[key]
        self._release(response)

    def _hold(self, response: StoredResponse | None) -> None:
        """Hold a response, and through it, if nobody did yet, the one it continues."""
        while response is not None:
            response.num_holders += 1
            if response.num_holders > 1:
                return
            self._num_bytes += response.num_bytes
            response = response.previous

    def _release(self, response: StoredResponse | None) -> None:
        while response is not None:
            response.num_holders -= 1
            if response.num_holders:
                return
            self._num_bytes -= response.num_bytes
            response = response.previous


async def off_loop(
    store: ResponseKeeper, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """What `call`, a method of `store`, returns: from a thread, unless the store is right here.

    A dictionary under a lock needs no thread, and so waits for none that others hold.
    """
    if isinstance(store, ResponseStore):
        return call(*args, **kwargs)
    return await asyncio.to_thread(call, *args, **kwargs)
