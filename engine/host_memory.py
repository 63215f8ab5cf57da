"""How much memory this process may still take: the host's or its control group's, the lesser.

A container sees the whole host in /proc/meminfo and is killed at its own limit. Limits hold at
every level of the group tree, so each ancestor counts. Page cache that the kernel would drop first
(`inactive_file`) is free for our purposes, as it is in the kernel's own MemAvailable.
"""

import os
from collections.abc import Iterator
from pathlib import Path

# The names of (limit, usage, reclaimable) in cgroup v2 and v1.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Never below 0. Where there is no /proc, all memory of the machine."""
    try:
        meminfo = (proc / "meminfo").read_text()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(0, min((_field(meminfo, "MemAvailable:") * 1024, *_group_rooms(proc, cgroups))))


def _group_rooms(proc: Path, cgroups: Path) -> Iterator[int]:
    """Bytes left in each control group this process is in that has a limit."""
    try:
        memberships = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in memberships:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            root, names = cgroups, _V2
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", _V1
        else:
            continue
        group = root / path.lstrip("/")
        # In a namespace the path may name groups above the mount: those do not exist here.
        for directory in (group, *group.parents):
            if (room := _room(directory, names)) is not None:
                yield room
            if directory == root:
                break


def _room(directory: Path, names: tuple[str, str, str]) -> int | None:
    """None without a limit."""
    limit_name, usage_name, reclaimable_name = names
    try:
        limit = (directory / limit_name).read_text().strip()
        usage = int((directory / usage_name).read_text())
        stat = (directory / "memory.stat").read_text()
    except OSError:
        return None
    if limit == "max":
        return None
    return int(limit) - usage + _field(stat, reclaimable_name)


def _field(text: str, name: str) -> int:
    """The number after `name` at the start of a line; 0 if there is none."""
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return 0
