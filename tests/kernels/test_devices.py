import pytest

from kernels.devices import DEVICES, TARGETS, Target

BY_CAPABILITY = {target.capability: target for target in TARGETS}


@pytest.mark.parametrize(
    ("capability", "registers", "shared_bytes", "num_warps", "resident_warps"),
    [
        (90, 32, 0, 4, 64),  # 65,536 / (32 * 32) = 64 warps: all
        (90, 128, 0, 4, 16),  # by registers
        (90, 129, 0, 8, 8),  # 4,352 a warp: 15, of which 12 are whole quadruples
        (90, 32, 100 * 1024, 4, 8),  # two blocks of shared memory
        (90, 32, 0, 1, 32),  # 32 blocks
        (89, 32, 0, 1, 24),  # 24 blocks
        (80, 255, 0, 8, 8),
        (120, 64, 60 * 1024, 8, 8),
        (120, 32, 99 * 1024, 8, 8),  # one KiB of the hundred is the driver's
    ],
)
def test_occupancy(
    capability: int, registers: int, shared_bytes: int, num_warps: int, resident_warps: int
) -> None:
    target: Target = BY_CAPABILITY[capability]
    share = target.occupancy(registers=registers, shared_bytes=shared_bytes, num_warps=num_warps)
    assert share * target.num_warps == resident_warps


def test_every_device_has_a_target() -> None:
    assert {device.capability for device in DEVICES} <= BY_CAPABILITY.keys()


def test_the_roofline_is_the_slower_of_two() -> None:
    h100 = DEVICES[0]
    assert h100.time_s(moved_bytes=3_350_000_000, flops=0) == pytest.approx(1e-3)
    assert h100.time_s(moved_bytes=0, flops=989_000_000_000) == pytest.approx(1e-3)
    assert h100.time_s(moved_bytes=3_350_000, flops=989_000_000_000) == pytest.approx(1e-3)
