"""Rotary angles of the attention layers: plain, or stretched by YaRN.

Only the first R dims of a head turn, in pairs (i, i + R/2): angle = position * frequency[i]. So
both halves of a row of cosines are equal, and the rest of the head passes through untouched.

YaRN divides the slow frequencies by its factor, keeps the fast ones and ramps in between; cosines
and sines grow by 0.1 ln(factor) + 1, which sharpens the turned part of the logits and nothing else.

Text has one stream of positions. A picture has three (time, height, width), and there every
frequency belongs to one stream: `mrope_section` says how many go to each, interleaved t h w t h w.
Which frequency that is does not depend on whether it was stretched.

Everything is fp32 here: positions reach a million, where bf16 cannot tell neighbours apart.
"""

import math

import torch

from engine.config import ModelConfig

FAST_TURNS = 32  # turns over the original window from which on a frequency is kept as it is
SLOW_TURNS = 1  # turns at and below which it is divided by the full factor


class Rotary:
    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.frequency_R2, self.scale = _frequencies(config)
        self.frequency_R2 = self.frequency_R2.to(device)
        self.stream_R2 = _streams(config.mrope_section, len(self.frequency_R2)).to(device)

    def cos_sin(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos_TR and sin_TR, fp32, of position_T or position_3T: the same where all three agree.

        A row depends on its own position only, to the bit.
        """
        if position.dim() == 2:
            position_TR2 = position.float()[self.stream_R2].T.contiguous()
        else:
            position_TR2 = position.float()[:, None]
        angle_TR2 = position_TR2 * self.frequency_R2
        cos_TR2 = angle_TR2.cos() * self.scale
        sin_TR2 = angle_TR2.sin() * self.scale
        return torch.cat((cos_TR2, cos_TR2), dim=-1), torch.cat((sin_TR2, sin_TR2), dim=-1)


def _streams(section: tuple[int, int, int], num_pairs: int) -> torch.Tensor:
    """Which of time 0, height 1 and width 2 each pair turns by."""
    stream_R2 = torch.zeros(num_pairs, dtype=torch.int64)
    for stream in (1, 2):
        stream_R2[stream : 3 * section[stream] : 3] = stream
    return stream_R2


def _frequencies(config: ModelConfig) -> tuple[torch.Tensor, float]:
    """Radians per token of the R/2 pairs, and the factor on cosines and sines."""
    num_dims = config.rotary_dim
    exponent_R2 = torch.arange(0, num_dims, 2, dtype=torch.float32) / num_dims
    frequency_R2 = 1.0 / config.rope_theta**exponent_R2
    factor = config.yarn_factor
    if factor is None:
        return frequency_R2, 1.0

    window = config.yarn_original_max_position

    def pair_turning(turns: int) -> float:
        """The (fractional) pair that turns `turns` times over the original window."""
        ratio = math.log(window / (turns * 2 * math.pi)) / math.log(config.rope_theta)
        return num_dims / 2 * ratio

    ramp_start = max(math.floor(pair_turning(FAST_TURNS)), 0)
    ramp_end = min(math.ceil(pair_turning(SLOW_TURNS)), num_dims - 1)
    width = max(ramp_end - ramp_start, 0.001)
    pair_R2 = torch.arange(num_dims // 2, dtype=torch.float32)
    slowed_R2 = ((pair_R2 - ramp_start) / width).clamp(0, 1)
    frequency_R2 = frequency_R2 * (1 - slowed_R2) + frequency_R2 / factor * slowed_R2
    return frequency_R2, 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
