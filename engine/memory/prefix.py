"""What was computed before and may be used again: a tree of prompt pages, with states at some.

A node is one full page of KV, found by its key (`page_keys`). The pages of a path hold what
attention needs of a prefix; the recurrent state after it is kept at few nodes only, and only these
can be continued from. So every leaf has a state or is in use: pages that lead to neither go back to
the pool at once.

A sequence holds the path from the root to where it began, and, as its own states are published, the
path to these: its pages then belong to the nodes. Held nodes stay. The others are idle, and idle
memory is as good as free: whoever needs pages takes them here, leaf by leaf.

Which state goes first is decided by what it saves for what it takes, and by how often and how
lately it did (GreedyDual-Size-Frequency, Cherkasova 1998):

    priority = clock + uses * saved / (pages_per_state + saved)

with `saved` the pages between this state and the one before it on its path when it was published,
which are also the pages that go with it. The clock is the priority of what was last evicted, so
states that are not used again fall behind.

Ids only, no bytes: a state's slot is overwritten by whoever gets it next, after all that was
planned before. Not for several threads.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.memory.pages import PagePool
from engine.memory.slots import SlotPool
from engine.plan import SCRATCH

MAX_SEEN = 1 << 17  # keys of pages that are remembered without their content: 8 M tokens


class Lookup(StrEnum):
    """How much of a prompt was found, and why it was not more."""

    WHOLE = "whole"  # all but the part that is always computed
    PART = "part"
    NEW = "new"  # nothing: its first page was never seen
    NO_STATE = "no_state"  # nothing: pages of it were seen, but no state is kept in them
    SHORT = "short"  # nothing: it fills no page
    UNCACHED = "uncached"  # nothing was looked for: its prompt is scored, or the cache is off


@dataclass(slots=True, eq=False)
class Node:
    """A page of the tree. Only the cache changes it."""

    key: bytes
    page: int
    parent: "Node | None"
    depth: int  # pages from the start of the prompt, this one included
    num_children: int = 0
    num_users: int = 0  # sequences that hold it; no fewer than any child's
    slot: int = SCRATCH  # of the state after this page; SCRATCH: none is kept
    num_uses: int = 0  # of the state: its publication, and every hit
    num_saved: int = 0  # pages from the state before it
    priority: float = 0.0


class PrefixCache:
    def __init__(self, pages: PagePool, slots: SlotPool, *, pages_per_state: int) -> None:
        """`slots` are those of saved states, none of them a running sequence's; may be none."""
        self._pages = pages
        self._slots = slots
        self.pages_per_state = max(1, pages_per_state)
        self._nodes: dict[bytes, Node] = {}
        self._states: dict[Node, None] = {}  # nodes with a state, by publication
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._clock = 0.0
        self._num_idle = 0
        self.num_evictions = 0  # states, since the start
        self.lookups = dict.fromkeys(Lookup, 0)  # since the start

    @property
    def is_on(self) -> bool:
        """There is room for at least one state; without it nothing is ever found."""
        return self.num_slots > 0

    @property
    def num_slots(self) -> int:
        """Room for so many states."""
        return self._slots.num_slots

    @property
    def num_pages(self) -> int:
        return len(self._nodes)

    @property
    def num_idle(self) -> int:
        """Pages that nobody holds."""
        return self._num_idle

    @property
    def num_to_be_had(self) -> int:
        """Pages that are free, or that `make_room` can make so."""
        return self._pages.num_free + self._num_idle

    @property
    def num_states(self) -> int:
        return len(self._states)

    def find(self, keys: Sequence[bytes]) -> Node | None:
        """The deepest node with a state on the path of `keys`, of which the first is a root's."""
        found = None
        for key in keys:
            node = self._nodes.get(key)
            if node is None:
                break
            if node.slot != SCRATCH:
                found = node
        return found

    def hold(self, node: Node | None) -> list[Node]:
        """The path from the root to `node`, held until `release`; empty for none."""
        path: list[Node] = []
        while node is not None:
            self._use(node)
            path.append(node)
            node = node.parent
        path.reverse()
        return path

    def release(self, path: list[Node]) -> None:
        """What `hold` and `publish` gave, once."""
        for node in path:
            node.num_users -= 1
            self._num_idle += node.num_users == 0
        if path:
            self._prune(path[-1])

    def count_hit(self, node: Node) -> None:
        """Somebody continues from the state of `node`."""
        node.num_uses += 1
        self._rank(node)

    def see(self, keys: Sequence[bytes]) -> int:
        """How many pages of `keys` were given here before; from now on all of them were."""
        num_seen = 0
        for key in keys:
            if key not in self._seen:
                break
            num_seen += 1
        for key in reversed(keys):  # the first are the last to be forgotten
            self._seen[key] = None
            self._seen.move_to_end(key)
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return num_seen

    def take_slot(self) -> int | None:
        """A slot for a state to come, of the least valuable state if none is free.

        None if there is none to evict: all are states to come.
        """
        if self._slots.num_free == 0:
            victim = min(self._states, key=lambda node: node.priority, default=None)
            if victim is None:
                return None
            self._evict(victim)
        return self._slots.acquire()

    def give_back(self, slot: int) -> None:
        """A slot that was taken, and whose state is not to be published."""
        self._slots.release(slot)

    def publish(self, path: list[Node], keys: Sequence[bytes], pages: list[int], slot: int) -> None:
        """Keep the state in `slot`, that after the page of the last of `keys`.

        `path` is held by the sequence whose `pages` these are; it grows to the new node, and pages
        without a node before now belong to theirs. Where another sequence was quicker, its page
        counts, and the caller's stays the caller's.
        """
        parent = path[-1] if path else None
        for depth in range(len(path) + 1, len(keys) + 1):
            node = self._nodes.get(keys[depth - 1])
            if node is None:
                node = Node(keys[depth - 1], pages[depth - 1], parent, depth)
                self._nodes[node.key] = node
                self._num_idle += 1
                if parent is not None:
                    parent.num_children += 1
            self._use(node)
            path.append(node)
            parent = node
        assert parent is not None
        assert parent.depth == len(keys), "states are published in order"
        if parent.slot != SCRATCH:
            self._slots.release(slot)
            return
        parent.slot = slot
        parent.num_uses = 1
        parent.num_saved = self._distance(parent)
        self._states[parent] = None
        self._rank(parent)

    def make_room(self, num_pages: int) -> bool:
        """Evict idle pages until `num_pages` are free in the pool; False if there are too few."""
        if self.num_to_be_had < num_pages:
            return False
        while self._pages.num_free < num_pages:
            leaves = (node for node in self._states if not node.num_children and not node.num_users)
            self._evict(min(leaves, key=lambda node: node.priority))
        return True

    def check(self, paths: Sequence[Sequence[Node]], slots_to_come: Sequence[int]) -> list[int]:
        """Assert the invariants in the module's docstring; the pages of all nodes."""
        nodes = list(self._nodes.values())
        for node in nodes:
            assert node.num_users == sum(node in path for path in paths)
            assert node.num_children == sum(other.parent is node for other in nodes)
            assert node.parent is None or self._nodes[node.parent.key] is node.parent
            assert node.depth == (1 if node.parent is None else node.parent.depth + 1)
            assert node.num_children or node.num_users or node.slot != SCRATCH
            assert (node.slot != SCRATCH) == (node in self._states)
        assert self._num_idle == sum(not node.num_users for node in nodes)
        self._slots.check([*(node.slot for node in self._states), *slots_to_come])
        return [node.page for node in nodes]

    def _use(self, node: Node) -> None:
        self._num_idle -= node.num_users == 0
        node.num_users += 1

    def _rank(self, node: Node) -> None:
        worth = node.num_saved / (self.pages_per_state + node.num_saved)
        node.priority = self._clock + node.num_uses * worth

    def _distance(self, node: Node) -> int:
        """Pages from the state before that of `node`, or from the start."""
        before = node.parent
        while before is not None and before.slot == SCRATCH:
            before = before.parent
        return node.depth - (0 if before is None else before.depth)

    def _evict(self, node: Node) -> None:
        self._clock = max(self._clock, node.priority)
        self.num_evictions += 1
        del self._states[node]
        self._slots.release(node.slot)
        node.slot = SCRATCH
        self._prune(node)

    def _prune(self, node: Node | None) -> None:
        """Let go of `node` and of all before it that lead to nothing."""
        while (
            node is not None
            and not node.num_children
            and not node.num_users
            and node.slot == SCRATCH
        ):
            del self._nodes[node.key]
            self._pages.release([node.page])
            self._num_idle -= 1
            node = node.parent
            if node is not None:
                node.num_children -= 1
