# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""Which rows a program of a prefill has: pieces of slices, found on the device.

A piece is what a slice has of one cell of the absolute grid of 64 positions. The host knows only
how many there may be at most, so programs look their piece up, LOOK_UP slices at a time.
"""

import triton
import triton.language as tl

CHUNK = tl.constexpr(64)
LOOK_UP = tl.constexpr(32)


@triton.jit
def num_pieces(start, num_rows):
    """Cells of the grid that a slice touches, also for vectors of slices."""
    return tl.where(num_rows > 0, (start + num_rows + CHUNK - 1) // CHUNK - start // CHUNK, 0)


@triton.jit
def piece(start, slice_row, end_row, nth):
    """First packed row of a slice's nth piece, and the number of its rows."""
    cell = (start // CHUNK + nth) * CHUNK
    first = slice_row + tl.maximum(cell - start, 0)
    return first, tl.minimum(slice_row + cell + CHUNK - start, end_row) - first


@triton.jit
def find_slice(program, starts, offsets, S):
    """The slice that a piece of the batch belongs to, and which of its pieces it is.

    The slice is -1 if there are fewer pieces: the host knows only how many there may be.
    """
    skipped = 0
    found = -1
    nth = 0
    for first in range(0, S, LOOK_UP):
        s = first + tl.arange(0, LOOK_UP)
        inside = s < S
        start = tl.load(starts + s, mask=inside, other=0).to(tl.int32)
        begin = tl.load(offsets + s, mask=inside, other=0).to(tl.int32)
        end = tl.load(offsets + s + 1, mask=inside, other=0).to(tl.int32)
        num = num_pieces(start, end - begin)
        before = skipped + tl.cumsum(num, axis=0) - num
        mine = (before <= program) & (program < before + num)
        found = tl.maximum(found, tl.max(tl.where(mine, s, -1), axis=0))
        nth += tl.sum(tl.where(mine, program - before, 0), axis=0)
        skipped += tl.sum(num, axis=0)
    return found, nth


@triton.jit
def find_emit(row, emit_rows, emit_slots, Z):
    """The slot for the snapshot after `row`, or -1."""
    found = -1
    for first in range(0, Z, LOOK_UP):
        z = first + tl.arange(0, LOOK_UP)
        hit = tl.load(emit_rows + z, mask=z < Z, other=-1) == row
        slot = tl.load(emit_slots + z, mask=z < Z, other=-1).to(tl.int32)
        found = tl.maximum(found, tl.max(tl.where(hit, slot, -1), axis=0))
    return found
