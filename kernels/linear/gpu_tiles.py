"""How large the tiles of a product are: a table by rows, columns and depth, for every GPU alike.

Few rows: all are one tile, and what counts is that enough programs read weights at once. A
multiprocessor needs about 25 bytes/ns of them on an H100, so 20 KiB or more on their way; hence
narrow columns, and D cut in parts where there are fewer than about a hundred column tiles. Many
rows: tiles as large as registers and 99 KiB of shared memory allow. Tiles of 64 rows and more meet
the warpgroup instructions of sm_90.
"""

from dataclasses import dataclass, replace

L2_BYTES = 8 << 20  # what is shared and smaller counts as read once
FEW_ROWS = 16
GROUP = 8
_ENOUGH_PROGRAMS = 96
_LEAST_DEPTH = 512
_MOST_PARTS = 8


@dataclass(frozen=True, slots=True)
class Tiles:
    rows: int
    columns: int
    depth: int
    parts: int  # of D, each summed by a program of its own
    num_warps: int
    num_stages: int
    max_registers: int | None = None


def tiles_of(T: int, D: int, F: int, element_bytes: int) -> Tiles:
    """For y [T, F]; a row's bits are the same for all T of one case of the four."""
    narrow = F < 32 * 128
    if T <= FEW_ROWS:
        tiles = Tiles(16, 16, 256, 1, 4, 5) if narrow else Tiles(16, 32, 128, 1, 4, 4)
    elif T <= 64:
        tiles = Tiles(64, 64, 128, 1, 4, 3, max_registers=255)
    elif T <= 256:
        tiles = Tiles(128, 64, 64, 1, 4, 4)
    else:
        return _sized(Tiles(128, 128, 64, 1, 8, 3), D, element_bytes)
    parts = 1
    while (
        -(-F // tiles.columns) * parts < _ENOUGH_PROGRAMS
        and 2 * parts * _LEAST_DEPTH <= D
        and parts < _MOST_PARTS
    ):
        parts *= 2
    return _sized(replace(tiles, parts=parts), D, element_bytes)


def swiglu_tiles_of(T: int, D: int, element_bytes: int) -> Tiles:
    """For hidden [T, F], with two columns of weights for each of the result."""
    if T <= FEW_ROWS:
        tiles = Tiles(16, 16, 128, 1, 4, 4)
    elif T <= 64:
        tiles = Tiles(64, 32, 128, 1, 4, 3)
    elif T <= 256:
        tiles = Tiles(128, 32, 64, 1, 4, 4)
    else:
        tiles = Tiles(128, 64, 64, 1, 8, 3)
    return _sized(tiles, D, element_bytes)


def _sized(tiles: Tiles, D: int, element_bytes: int) -> Tiles:
    """The table is for two bytes an element; a step is never longer than D needs."""
    depth = max(16, min(tiles.depth * 2 // element_bytes, 1 << (D - 1).bit_length()))
    return replace(tiles, depth=depth)


def moved_operand_bytes(T: int, D: int, F: int, tiles: Tiles, element_bytes: int) -> int:
    """What programs read of x [T, D] and weights [F, D].

    GROUP row tiles go through all columns together: rows stay near meanwhile, and weights come
    once for each group unless they stay near themselves.
    """
    num_groups = -(-T // (tiles.rows * GROUP))
    group_bytes = min(T, tiles.rows * GROUP) * D * element_bytes
    weight_bytes = F * D * element_bytes
    x_bytes = T * D * element_bytes
    if group_bytes > L2_BYTES:
        x_bytes *= -(-F // tiles.columns)
    return x_bytes + weight_bytes * (1 if weight_bytes <= L2_BYTES else num_groups)
