"""Every kernel that a step starts, compiled for every target, as a table."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.launches.record import Started, record_every_kind, record_step, record_windows
from engine.launches.shapes import MODELS, ODD_STEPS, STEPS, Step, few_layers, of_rank
from kernels.aot import Binary, Variant, compile_all, variants_of
from kernels.devices import KIB, TARGETS, Target
from kernels.launch import Launch

RANKS = {"35B-A3B": (1, 2, 4, 8), "9B": (1,)}
SAMPLING = "sampling"
_HASH = re.compile(r"[0-9a-f]{8}")
_SPILLS = re.compile(r"spills (\d+) B")
_SHARED = re.compile(r"(\d+) K,")
SPECULATION = "speculation"


@dataclass(slots=True)
class Needed:
    """A variant, and who starts it: `35B-A3B/4` is a rank of four."""

    variant: Variant
    users: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.variant.name} {self.variant.key[:8]}"


def needed(
    ranks: Mapping[str, Sequence[int]], steps: Iterable[Step] = (*STEPS, *ODD_STEPS)
) -> list[Needed]:
    """Each distinct variant that the models' steps start at these numbers of ranks.

    Sampling's are among them, and attention to the windows that speculation would verify.
    """
    found: dict[str, Needed] = {}

    def note(user: str, started: Iterable[Started]) -> None:
        for variant in launched(started):
            users = found.setdefault(variant.key, Needed(variant)).users
            if user not in users:
                users.append(user)

    for name, numbers in ranks.items():
        for number in numbers:
            model = few_layers(of_rank(MODELS[name], number))
            for step in steps:
                note(f"{name}/{number}", record_step(model, step))
            note(SPECULATION, record_windows(model))
    note(SAMPLING, record_every_kind())
    return list(found.values())


def launched(started: Iterable[Started]) -> list[Variant]:
    """The distinct kernels of our own among what is started."""
    return variants_of(item for item in started if isinstance(item, Launch))


def compile_needed(
    variants: Iterable[Variant], targets: Sequence[Target] = TARGETS
) -> dict[str, dict[int, Binary]]:
    """By the variant's key, then by compute capability."""
    jobs = [(variant, target.capability) for variant in variants for target in targets]
    binaries: dict[str, dict[int, Binary]] = {}
    for binary in compile_all(jobs):
        binaries.setdefault(binary.key, {})[binary.capability] = binary
    return binaries


def faults(need: Needed, binary: Binary, target: Target) -> list[str]:
    """What must not be: a kernel that spills, does not fit, or misses wgmma where it is due."""
    found: list[str] = []
    if binary.spill_bytes:
        found.append(f"spills {binary.spill_bytes} bytes")
    if binary.shared_bytes > target.block_shared_bytes:
        found.append(f"needs {binary.shared_bytes} bytes of shared memory")
    if target.capability == 90 and binary.dot_rows >= 64 and not binary.has_wgmma:
        found.append(f"multiplies {binary.dot_rows} rows without wgmma")
    return [f"{need.title} for sm_{target.capability} {fault}" for fault in found]


def table(
    needs: Iterable[Needed],
    binaries: dict[str, dict[int, Binary]],
    targets: Sequence[Target] = TARGETS,
) -> list[str]:
    """A cell says: registers, KiB of shared memory, occupancy."""
    head = ("kernel", "hash", "of", "constants", "warps", *(f"sm_{t.capability}" for t in targets))
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for need in needs:
        variant = need.variant
        constants = " ".join(f"{name}={value}" for name, value in variant.constants)
        cells = [_cell(binaries[variant.key][target.capability], target) for target in targets]
        row = (variant.name, variant.key[:8], _users(need.users), constants, str(variant.num_warps))
        lines.append(f"| {' | '.join((*row, *cells))} |")
    return lines


def read_cells(document: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Of each row of the table: kernel and hash, who starts it, a cell for each target."""
    rows: list[tuple[str, str, tuple[str, ...]]] = []
    for line in document.splitlines():
        columns = line.strip().strip("|").split(" | ")
        if len(columns) > 5 and _HASH.fullmatch(columns[1]):
            name, key, users, _, _, *cells = (column.strip() for column in columns)
            rows.append((f"{name} {key}", users, tuple(cells)))
    return rows


def cell_faults(document: str, targets: Sequence[Target] = TARGETS) -> list[str]:
    """What must not be in the table: what `faults` finds, as far as cells say it.

    So what was compiled at any number of ranks counts, without compiling it again: a row's hash is
    that of its source.
    """
    found: list[str] = []
    for title, _, cells in read_cells(document):
        if len(cells) != len(targets):
            found.append(f"{title} has {len(cells)} cells for {len(targets)} targets")
            continue
        for cell, target in zip(cells, targets, strict=True):
            where = f"{title} for sm_{target.capability}"
            if spills := _SPILLS.search(cell):
                found.append(f"{where} spills {spills[1]} bytes")
            shared = _SHARED.search(cell)
            if shared is None:
                found.append(f"{where} says nothing of shared memory: {cell}")
            elif int(shared[1]) * KIB > target.block_shared_bytes:
                found.append(f"{where} needs {shared[1]} KiB of shared memory")
    return found


def _cell(binary: Binary, target: Target) -> str:
    occupancy = target.occupancy(
        registers=binary.registers,
        shared_bytes=binary.shared_bytes,
        num_warps=binary.num_warps,
    )
    cell = f"{binary.registers} r, {binary.shared_bytes / 1024:.0f} K, {occupancy:.0%}"
    if binary.spill_bytes:
        cell += f", spills {binary.spill_bytes} B"
    return cell + (", wgmma" if binary.has_wgmma else "")


def _users(users: list[str]) -> str:
    """`35B-A3B/1 35B-A3B/2` is written `35B-A3B/1,2`."""
    numbers: dict[str, list[str]] = {}
    for user in users:
        name, _, number = user.partition("/")
        numbers.setdefault(name, []).append(number)
    return " ".join(f"{name}/{','.join(n)}" if any(n) else name for name, n in numbers.items())
