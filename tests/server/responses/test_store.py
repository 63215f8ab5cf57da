"""The store alone: its bounds, who finds what, and what a conversation holds on to."""

import random

from server.responses.store import (
    ITEM_OVERHEAD,
    RESPONSE_OVERHEAD,
    ResponseStore,
    StoredItem,
    StoredResponse,
)

SIZE = RESPONSE_OVERHEAD + 2 * ITEM_OVERHEAD + 100


def response(
    name: str, previous: StoredResponse | None = None, *, owner: bytes = b"", size: int = 100
) -> StoredResponse:
    """A response of SIZE bytes, or of as many more as `size` is more than 100."""
    ids = (f"in-{name}", f"out-{name}")
    items = tuple(StoredItem(item_id, b'{"id":"%s"}' % item_id.encode()) for item_id in ids)
    used = sum(len(item.id) + len(item.json) for item in items)
    return StoredResponse(
        name,
        owner,
        body=b"x" * (size - used),
        input_items=items[:1],
        output_items=items[1:],
        previous=previous,
    )


def found(store: ResponseStore, names: str, owner: bytes = b"") -> str:
    return "".join(name for name in names if store.item(owner, f"in-{name}") is not None)


def test_sizes_are_counted() -> None:
    store = ResponseStore()
    first = response("a")
    assert first.num_bytes == SIZE
    store.add(first)
    store.add(response("b", first, size=150))
    assert (store.num_responses, store.num_bytes) == (2, 2 * SIZE + 50)
    assert store.get(b"", "a") is first


def test_the_one_used_longest_ago_goes_by_count() -> None:
    store = ResponseStore(max_responses=3)
    for name in "abc":
        store.add(response(name))
    assert store.get(b"", "a") is not None
    store.add(response("d"))
    assert found(store, "abcd") == "acd"
    assert store.get(b"", "b") is None
    assert store.num_bytes == 3 * SIZE


def test_the_one_used_longest_ago_goes_by_bytes() -> None:
    store = ResponseStore(max_bytes=3 * SIZE)
    for name in "abc":
        store.add(response(name))
    store.add(response("d", size=101))
    assert store.num_bytes == 2 * SIZE + 1
    assert found(store, "abcd") == "cd"


def test_what_is_too_large_alone_is_not_kept() -> None:
    store = ResponseStore(max_bytes=2 * SIZE)
    first = response("a")
    second = response("b", first)
    store.add(first)
    store.add(second)
    store.add(response("c", second))
    assert found(store, "abc") == "ab"
    assert store.num_bytes == 2 * SIZE


def test_a_conversation_outlives_its_earlier_responses() -> None:
    store = ResponseStore(max_responses=2)
    first = response("a")
    second = response("b", first)
    third = response("c", second)
    for one in (first, second, third):
        store.add(one)
    assert store.get(b"", "a") is None
    assert found(store, "abc") == "bc"
    assert [item.id for item in third.context()] == ["in-a", "out-a", "in-b", "out-b", "in-c"]
    assert store.num_bytes == 3 * SIZE
    assert store.delete(b"", "b")
    assert store.num_bytes == 3 * SIZE
    assert store.delete(b"", "c")
    assert (store.num_responses, store.num_bytes) == (0, 0)


def test_branches_count_what_they_share_once() -> None:
    store = ResponseStore()
    first = response("a")
    store.add(first)
    store.add(response("b", first))
    store.add(response("c", first))
    assert store.num_bytes == 3 * SIZE
    assert store.delete(b"", "a")
    assert store.num_bytes == 3 * SIZE
    assert store.delete(b"", "b")
    assert store.num_bytes == 2 * SIZE
    assert store.delete(b"", "c")
    assert store.num_bytes == 0


def test_what_went_while_it_was_continued_is_held_again() -> None:
    store = ResponseStore()
    first = response("a")
    second = response("b", first)
    store.add(first)
    store.add(second)
    assert store.delete(b"", "a")
    assert store.delete(b"", "b")
    assert store.num_bytes == 0
    store.add(response("c", second))
    assert (store.num_responses, store.num_bytes) == (1, 3 * SIZE)
    assert store.delete(b"", "c")
    assert store.num_bytes == 0


def test_owners_do_not_meet() -> None:
    store = ResponseStore(max_responses=2)
    store.add(response("a", owner=b"one"))
    store.add(response("b", owner=b"two"))
    assert store.get(b"two", "a") is None
    assert store.item(b"two", "in-a") is None
    assert not store.delete(b"two", "a")
    store.add(response("c", owner=b"two"))
    assert store.get(b"one", "a") is None, "a look by somebody else is no use"
    assert found(store, "bc", b"two") == "bc"


def test_without_room_nothing_stays() -> None:
    store = ResponseStore(max_responses=0)
    store.add(response("a"))
    assert (store.num_responses, store.num_bytes) == (0, 0)
    assert store.item(b"", "in-a") is None


def test_random_traffic_keeps_the_books() -> None:
    """Whatever happens, the bytes are those of all that can be reached."""
    chance = random.Random(5)
    store = ResponseStore(max_responses=12, max_bytes=25 * SIZE)
    alive: dict[str, StoredResponse] = {}
    for step in range(2000):
        previous = chance.choice([None, *alive.values()])
        if chance.random() < 0.8:
            new = response(str(step), previous, size=chance.randrange(100, 3000))
            store.add(new)
            alive[new.id] = new
        elif alive:
            assert store.delete(b"", chance.choice(list(alive)))
        alive = {k: v for k, v in alive.items() if store.get(b"", k) is v}
        reached: dict[str, StoredResponse] = {}
        for one in alive.values():
            turn: StoredResponse | None = one
            while turn is not None:
                reached[turn.id] = turn
                turn = turn.previous
        assert store.num_bytes == sum(turn.num_bytes for turn in reached.values())
        assert store.num_bytes <= 25 * SIZE
        assert store.num_responses == len(alive) <= 12
