"""What docs/gpu.md says that the compiler made of each kernel, at every number of ranks."""

from pathlib import Path

import pytest

from engine.launches.binaries import cell_faults, read_cells
from kernels.devices import TARGETS

ROOT = Path(__file__).parents[2]
HEAD = "| kernel | hash | of | constants | warps | sm_80 | sm_89 | sm_90 | sm_100 | sm_120 |"
GOOD = "119 r, 36 K, 25%"


def row(*cells: str, users: str = "35B-A3B/8", constants: str = "BLOCK_M=16") -> str:
    return f"| linear | 0123abcd | {users} | {constants} | 4 | {' | '.join(cells)} |"


@pytest.mark.parametrize(
    ("place", "cell", "fault"),
    [
        (0, "255 r, 36 K, 25%, spills 8 B", "linear 0123abcd for sm_80 spills 8 bytes"),
        (1, "119 r, 100 K, 8%", "linear 0123abcd for sm_89 needs 100 KiB of shared memory"),
        (2, "119 r, 228 K, 8%", "linear 0123abcd for sm_90 needs 228 KiB of shared memory"),
        (4, "119 r, 100 K, 8%", "linear 0123abcd for sm_120 needs 100 KiB of shared memory"),
    ],
)
def test_a_cell_that_must_not_be_is_found(place: int, cell: str, fault: str) -> None:
    cells = [GOOD] * 5
    cells[place] = cell
    assert cell_faults("\n".join((HEAD, row(*cells)))) == [fault]
    assert cell_faults("\n".join((HEAD, row(*[GOOD] * 5)))) == []


def test_a_row_that_lacks_a_target_is_found() -> None:
    assert cell_faults(row(*[GOOD] * 4)) == ["linear 0123abcd has 4 cells for 5 targets"]


def test_the_document_has_sound_cells_for_every_number_of_ranks() -> None:
    document = (ROOT / "docs" / "gpu.md").read_text()
    assert cell_faults(document) == []
    rows = read_cells(document)
    assert all(len(cells) == len(TARGETS) for _, _, cells in rows)
    for ranks in (1, 2, 4, 8):
        users = [
            part.partition("/")[2].split(",")
            for _, of, _ in rows
            for part in of.split()
            if part.startswith("35B-A3B/")
        ]
        assert sum(str(ranks) in numbers for numbers in users) > 20
