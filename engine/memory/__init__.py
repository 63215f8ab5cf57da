"""Ids only, no bytes: who holds which KV page and which recurrent-state slot, and what was kept."""

from engine.memory.page_keys import PageKeys
from engine.memory.pages import PagePool, pages_for
from engine.memory.prefix import Lookup, Node, PrefixCache
from engine.memory.slots import SlotPool
from engine.memory.snapshot_points import snapshot_points

__all__ = [
    "Lookup",
    "Node",
    "PageKeys",
    "PagePool",
    "PrefixCache",
    "SlotPool",
    "pages_for",
    "snapshot_points",
]
