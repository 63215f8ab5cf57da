import pytest
import torch

from kernels.sampling import philox4x32, uniform


def words(text: str) -> torch.Tensor:
    return torch.tensor([[int(word, 16) for word in text.split()]])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of the Random123 distribution, "philox4x32 10"
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    assert torch.equal(philox4x32(words(counter), words(key)), words(expected))


def test_a_number_does_not_depend_on_its_batch() -> None:
    key_R2 = torch.randint(0, 1 << 32, (17, 2), generator=torch.Generator().manual_seed(0))
    position_R = torch.arange(17) * 1000
    together_R = uniform(key_R2, position_R)
    alone = [uniform(key_R2[i : i + 1], position_R[i : i + 1]) for i in range(17)]
    assert torch.equal(together_R, torch.cat(alone))
    assert len(set(together_R.tolist())) == 17


def test_numbers_are_uniform_over_positions_and_over_seeds() -> None:
    n, bins = 64_000, 64
    ones, running = torch.ones(n, dtype=torch.int64), torch.arange(n)
    same_key_R2 = torch.tensor([[7, 3]]).expand(n, 2)
    next_keys_R2 = torch.stack((running, 0 * ones), dim=-1)
    for number_R in (uniform(same_key_R2, running), uniform(next_keys_R2, 5 * ones)):
        assert number_R.dtype == torch.float64
        assert number_R.min() > 0
        assert number_R.max() < 1
        counts = torch.histc(number_R, bins=bins, min=0, max=1)
        chi_square = ((counts - n / bins) ** 2 / (n / bins)).sum().item()
        assert chi_square < 124.6  # mean 63, standard deviation 11.2
