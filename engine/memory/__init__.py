"""Ids only, no bytes: who holds which KV page and which recurrent-state slot."""

from engine.memory.pages import PagePool, pages_for
from engine.memory.slots import SlotPool

__all__ = ["PagePool", "SlotPool", "pages_for"]
