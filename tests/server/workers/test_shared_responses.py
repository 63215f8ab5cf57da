"""The shared store behaves as the store of one process does, whichever worker asks."""

import random

import msgspec

from server.responses import ResponseKeeper, ResponseStore, StoredItem, StoredResponse
from server.workers.messages import (
    Answer,
    Ask,
    Call,
    Result,
    Scrape,
    decode_to_parent,
    decode_to_worker,
    frame,
)
from server.workers.shared_responses import SharedResponses, answer_from


def worker_of(store: ResponseStore) -> SharedResponses:
    """A worker's side, with all that crosses written to bytes and read again."""

    def call(ask: Ask) -> Result:
        asked = decode_to_parent(frame(Call(1, ask))[4:])
        assert isinstance(asked, Call)
        assert not isinstance(asked.ask, Scrape)
        answer = decode_to_worker(frame(Answer(1, answer_from(store, asked.ask)))[4:])
        assert isinstance(answer, Answer)
        return answer.result

    return SharedResponses(call)


def response(
    name: str, previous: StoredResponse | None = None, *, owner: bytes = b""
) -> StoredResponse:
    ids = (f"in-{name}", f"out-{name}")
    items = tuple(StoredItem(item_id, b'{"id":"%s"}' % item_id.encode()) for item_id in ids)
    return StoredResponse(
        name,
        owner,
        body=b"body of " + name.encode(),
        input_items=items[:1],
        output_items=items[1:],
        previous=previous,
    )


def seen(response: StoredResponse | None) -> tuple[object, ...] | None:
    if response is None:
        return None
    items = (response.context(), list(response.output_items))
    return (response.id, response.owner, response.body, response.input_items, *items)


def test_one_worker_finds_what_another_kept() -> None:
    store = ResponseStore()
    one, two = worker_of(store), worker_of(store)
    one.add(response("a"))
    first = two.get(b"", "a")
    assert first is not None
    assert seen(first) == seen(response("a"))
    two.add(response("b", first))
    second = one.get(b"", "b")
    assert second is not None
    assert [item.id for item in second.context()] == ["in-a", "out-a", "in-b"]
    assert one.item(b"", "out-b") == b'{"id":"out-b"}'
    assert one.item(b"", "out-c") is None
    assert one.get(b"other", "a") is None
    assert not one.delete(b"other", "a")
    assert one.delete(b"", "a")
    assert not two.delete(b"", "a")
    assert two.get(b"", "a") is None
    assert store.num_responses == 1


def test_a_conversation_is_counted_once() -> None:
    alone, store = ResponseStore(), ResponseStore()
    worker = worker_of(store)
    previous = kept = None
    for name in "abcde":
        kept = response(name, kept)
        alone.add(kept)
        worker.add(response(name, previous))
        previous = worker.get(b"", name)
    assert store.num_bytes == alone.num_bytes


def test_what_was_deleted_while_it_was_continued_is_kept_with_what_continues_it() -> None:
    store = ResponseStore()
    worker = worker_of(store)
    worker.add(response("a"))
    worker.add(response("b", worker.get(b"", "a")))
    previous = worker.get(b"", "b")
    assert worker.delete(b"", "a")
    assert worker.delete(b"", "b")
    assert store.num_bytes == 0
    worker.add(response("c", previous))
    found = worker.get(b"", "c")
    assert found is not None
    assert [item.id for item in found.context()] == ["in-a", "out-a", "in-b", "out-b", "in-c"]
    assert worker.get(b"", "b") is None
    assert worker.get(b"", "") is None
    assert worker.item(b"", "in-a") is None
    assert worker.delete(b"", "c")
    assert store.num_bytes == 0


def test_random_traffic_is_that_of_one_store() -> None:
    chance = random.Random(3)
    alone, shared = ResponseStore(max_responses=8), ResponseStore(max_responses=8)
    workers = [worker_of(shared) for _ in range(3)]
    names: list[str] = []

    def act(keeper: ResponseKeeper, kind: float, name: str, owner: bytes) -> object:
        if kind < 0.4:
            previous = keeper.get(owner, name)
            keeper.add(response(f"{len(names)}", previous, owner=owner))
            return None
        if kind < 0.6:
            return keeper.delete(owner, name)
        if kind < 0.8:
            return keeper.item(owner, f"in-{name}")
        return seen(keeper.get(owner, name))

    for _ in range(1000):
        kind, owner = chance.random(), chance.choice([b"", b"x"])
        name = chance.choice(names[-12:] or ["none"])
        expected = act(alone, kind, name, owner)
        assert act(chance.choice(workers), kind, name, owner) == expected
        if kind < 0.4:
            names.append(f"{len(names)}")
        assert shared.num_responses == alone.num_responses
        assert shared.num_bytes == alone.num_bytes


def test_nothing_else_is_taken_for_a_message() -> None:
    for body in (b"", b"\xc0", msgspec.msgpack.encode({"type": "Exec"})):
        try:
            decode_to_parent(body)
        except msgspec.DecodeError:
            continue
        raise AssertionError(body)
