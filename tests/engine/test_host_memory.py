from pathlib import Path

import pytest

from engine.host_memory import available_bytes

KIB = 1024


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """10,000 KiB available, this process in the v2 group /a/b and the v1 group /old."""
    write(tmp_path / "proc/meminfo", "MemTotal: 20000 kB\nMemAvailable:   10000 kB\n")
    write(tmp_path / "proc/self/cgroup", "9:cpu,memory:/old\n3:cpuset:/x\n0::/a/b\n")
    (tmp_path / "cg").mkdir()
    return tmp_path


def measure(host: Path) -> int:
    return available_bytes(host / "proc", host / "cg")


def v2(host: Path, group: str, limit: str, usage: int, reclaimable: int = 0) -> None:
    write(host / "cg" / group / "memory.max", f"{limit}\n")
    write(host / "cg" / group / "memory.current", f"{usage}\n")
    stat = f"anon 5\nfile 9\ninactive_file {reclaimable}\n"
    write(host / "cg" / group / "memory.stat", stat)


def test_without_limits_the_host_decides(host: Path) -> None:
    assert measure(host) == 10_000 * KIB
    v2(host, "a/b", "max", 5)
    assert measure(host) == 10_000 * KIB


def test_a_group_limit_counts_and_dropped_cache_is_free(host: Path) -> None:
    v2(host, "a/b", str(3000 * KIB), 1000 * KIB, reclaimable=400 * KIB)
    assert measure(host) == 2400 * KIB


def test_the_tightest_ancestor_wins(host: Path) -> None:
    v2(host, "a/b", str(3000 * KIB), 0)
    v2(host, "a", str(9000 * KIB), 8000 * KIB)
    assert measure(host) == 1000 * KIB


def test_in_a_namespace_the_mount_itself_is_the_group(host: Path) -> None:
    v2(host, ".", str(700 * KIB), 0)
    assert measure(host) == 700 * KIB


def test_version_1(host: Path) -> None:
    group = host / "cg/memory/old"
    write(group / "memory.limit_in_bytes", f"{500 * KIB}\n")
    write(group / "memory.usage_in_bytes", f"{300 * KIB}\n")
    write(group / "memory.stat", f"inactive_file 7\ntotal_inactive_file {100 * KIB}\n")
    assert measure(host) == 300 * KIB


def test_a_full_group_leaves_nothing(host: Path) -> None:
    v2(host, "a/b", "1000", 5000)
    assert measure(host) == 0


def test_this_machine() -> None:
    assert available_bytes() > 0


def test_without_proc_all_memory_counts(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "none", tmp_path) > 1 << 20
