"""GPUs that kernels are built and budgeted for: what a multiprocessor holds, how fast it all is.

Limits are those of the CUDA C++ Programming Guide ("Technical Specifications per Compute
Capability"). Bandwidth and dense bf16 peak with fp32 accumulation are NVIDIA's data sheets': H100
SXM and H200 (2024), HGX B200 (one of its eight GPUs), GeForce RTX 4090 (Ada whitepaper) and RTX
5090 (Blackwell whitepaper).
"""

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True, slots=True)
class Target:
    """A compute capability. Every one here has 65,536 registers per multiprocessor."""

    capability: int
    shared_bytes: int  # of one multiprocessor
    block_shared_bytes: int  # the most that one block may have
    num_warps: int  # resident at once
    num_blocks: int  # resident at once

    def occupancy(self, *, registers: int, shared_bytes: int, num_warps: int) -> float:
        """Resident warps of a kernel, as a share of those that the target could hold."""
        warp_registers = _up(32 * max(registers, 1), 256)
        blocks = _NUM_REGISTERS // warp_registers // 4 * 4 // num_warps
        blocks = min(blocks, self.num_warps // num_warps, self.num_blocks)
        blocks = min(blocks, self.shared_bytes // _up(shared_bytes + _RESERVED_BYTES, 128))
        return blocks * num_warps / self.num_warps


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    capability: int
    bytes_per_s: float
    flops_per_s: float

    def time_s(self, *, moved_bytes: int, flops: int) -> float:
        """The roofline: nothing that does so much can be faster."""
        return max(moved_bytes / self.bytes_per_s, flops / self.flops_per_s)


_NUM_REGISTERS = 65536
_RESERVED_BYTES = 1 * KIB  # of shared memory, by the driver, for each resident block


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


TARGETS = (
    Target(80, 164 * KIB, 163 * KIB, num_warps=64, num_blocks=32),
    Target(89, 100 * KIB, 99 * KIB, num_warps=48, num_blocks=24),
    Target(90, 228 * KIB, 227 * KIB, num_warps=64, num_blocks=32),
    Target(100, 228 * KIB, 227 * KIB, num_warps=64, num_blocks=32),
    Target(120, 100 * KIB, 99 * KIB, num_warps=48, num_blocks=24),
)

DEVICES = (
    Device("H100 SXM", 90, 3.35e12, 989e12),
    Device("H200", 90, 4.8e12, 989e12),
    Device("B200", 100, 8.0e12, 2250e12),
    Device("RTX 4090", 89, 1.008e12, 165.2e12),
    Device("RTX 5090", 120, 1.792e12, 209.5e12),
)

LAUNCH_S = 2e-6  # what starting one kernel costs the stream, about
