"""The vision tower: one picture in, one feature for each of its tokens out.

A picture is cut into patches, and 2 x 2 patches of a side (`spatial_merge_size`) make one token. So
patches are kept in the order (row of blocks, column of blocks, row in the block, column in it), and
the patches of a token are neighbours. Between the embedding of a patch, which knows where it lies
by a learned table that is stretched over the picture, and the merger stand blocks of attention,
every patch seeing all others, turned by their rows and columns.

Pictures are computed one at a time: a feature depends on its picture only, to the bit. A large one
has 65,536 patches, so whatever is wider than a patch's own row is made for some rows at a time;
only the residual stream, queries, keys and values exist whole.

Letters: N patches of the picture, M tokens, R rows at a time, C numbers in a patch (channel, frame,
row, column), W width of the tower, H heads, E head dim, Q pairs of an axis (E / 4), F MLP width,
D hidden size of the text model.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from engine.device_memory import TOWER_ROWS
from engine.vision_config import VisionConfig

_EPS = 1e-6
_THETA = 10_000.0


class VisionTower:
    """Parameters are uninitialised memory until every tensor in `places` was copied into."""

    def __init__(
        self,
        config: VisionConfig,
        dtype: torch.dtype,
        device: torch.device,
        *,
        text_hidden_size: int,
        rows_at_once: int = TOWER_ROWS,
    ) -> None:
        """`rows_at_once` is a multiple of the patches of a token."""
        W, p = config.hidden_size, config.patch_size
        merged_W = W * config.spatial_merge_size**2
        patch_shape = (config.in_channels, config.temporal_patch_size, p, p)
        self._config = config
        self._rows_at_once = rows_at_once
        self._patch_embedding = _Linear(W, patch_shape, dtype, device)
        self._table = torch.empty(config.num_position_embeddings, W, dtype=dtype, device=device)
        self._blocks = tuple(_Block(config, dtype, device) for _ in range(config.depth))
        self._merger_norm = _Norm(W, dtype, device)
        self._merger_in = _Linear(merged_W, (merged_W,), dtype, device)
        self._merger_out = _Linear(text_hidden_size, (merged_W,), dtype, device)
        self.num_pieces = 0  # of work, since the start: grows while a picture is on its way

    @property
    def merged_size(self) -> int:
        """Pixels of a side of a token."""
        return self._config.merged_size

    def places(self) -> dict[str, torch.Tensor]:
        """Map every needed tensor's name, without the prefix `visual.`, to the tensor it fills."""
        parts: dict[str, _Linear | _Norm | _Block] = {
            "patch_embed.proj": self._patch_embedding,
            "merger.norm": self._merger_norm,
            "merger.linear_fc1": self._merger_in,
            "merger.linear_fc2": self._merger_out,
            **{f"blocks.{i}": block for i, block in enumerate(self._blocks)},
        }
        return {"pos_embed.weight": self._table} | _places(parts)

    def forward(self, pixel: torch.Tensor) -> torch.Tensor:
        """feature_MD of a picture, uint8 [frames, height, width, 3]: one frame, or as many as a
        temporal patch has. Sides are multiples of `merged_size`."""
        patch_NC = self._patches(pixel)
        height, width = (side // self._config.patch_size for side in pixel.shape[1:3])
        row_N, column_N = self._raster(height, width, pixel.device)
        x_NW = self._table.new_empty(len(patch_NC), self._config.hidden_size)
        for rows in self._chunks(len(patch_NC)):
            number_RC = (patch_NC[rows].float() / 255 - 0.5) / 0.5
            place_RW = self._places_on_table(row_N[rows], column_N[rows], height, width)
            x_NW[rows] = self._patch_embedding(number_RC.to(x_NW.dtype)) + place_RW.to(x_NW.dtype)
        del patch_NC

        cos_sin = self._cos_sin(row_N, column_N)
        for block in self._blocks:
            block.advance(x_NW, cos_sin, lambda: self._chunks(len(x_NW)))
        return torch.cat([self._merge(x_NW[rows]) for rows in self._chunks(len(x_NW))])

    def _patches(self, pixel: torch.Tensor) -> torch.Tensor:
        """patch_NC, uint8. A still picture repeats its only frame."""
        config = self._config
        m, p = config.spatial_merge_size, config.patch_size
        frames, (height, width) = config.temporal_patch_size, pixel.shape[1:3]
        pixel = pixel.expand(frames, -1, -1, -1)
        cut = pixel.reshape(frames, height // m // p, m, p, width // m // p, m, p, -1)
        return cut.permute(1, 4, 2, 5, 7, 0, 3, 6).flatten(4).flatten(0, 3)

    def _raster(
        self, height: int, width: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of each patch, in the patches' order; sides in patches."""
        m = self._config.spatial_merge_size
        index = torch.arange(height * width, device=device)
        index_N = index.view(height // m, m, width // m, m).transpose(1, 2).flatten()
        return index_N // width, index_N % width

    def _places_on_table(
        self, row_R: torch.Tensor, column_R: torch.Tensor, height: int, width: int
    ) -> torch.Tensor:
        """place_RW, fp32: the table with its corners on the picture's, between entries bilinear."""
        side = int(self._config.num_position_embeddings**0.5)
        ends: list[tuple[tuple[torch.Tensor, torch.Tensor], ...]] = []
        for at_R, length in ((row_R, height), (column_R, width)):
            point_R = at_R.float() * (side - 1) / max(length - 1, 1)
            low_R = point_R.long().clamp(max=side - 1)
            share_R = point_R - low_R
            ends.append(((low_R, 1 - share_R), ((low_R + 1).clamp(max=side - 1), share_R)))
        place_RW = torch.zeros(len(row_R), self._table.shape[1], device=row_R.device)
        for table_row_R, row_share_R in ends[0]:
            for table_column_R, column_share_R in ends[1]:
                entry_RW = self._table[table_row_R * side + table_column_R]
                place_RW += entry_RW * (row_share_R * column_share_R)[:, None]
        return place_RW

    def _cos_sin(
        self, row_N: torch.Tensor, column_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos_NE and sin_NE, fp32: pair i turns with i + E/2, by the row and then by the column."""
        half = self._config.head_dim // 2
        exponent_Q = torch.arange(0, half, 2, dtype=torch.float32, device=row_N.device) / half
        frequency_Q = 1.0 / _THETA**exponent_Q
        angles = [at_N.float()[:, None] * frequency_Q for at_N in (row_N, column_N)]
        angle_NE = torch.cat(angles * 2, dim=-1)
        return angle_NE.cos(), angle_NE.sin()

    def _merge(self, x_RW: torch.Tensor) -> torch.Tensor:
        """feature_MD of these patches."""
        num_tokens = len(x_RW) // self._config.spatial_merge_size**2
        merged = self._merger_norm(x_RW).view(num_tokens, -1)
        return self._merger_out(gelu(self._merger_in(merged)))

    def _chunks(self, num_rows: int) -> Iterator[slice]:
        """A few rows at a time; counts the pieces of work that this cuts."""
        for begin in range(0, num_rows, self._rows_at_once):
            yield slice(begin, begin + self._rows_at_once)
            self.num_pieces += 1


class _Block:
    def __init__(self, config: VisionConfig, dtype: torch.dtype, device: torch.device) -> None:
        W, F = config.hidden_size, config.intermediate_size
        self._num_heads, self._head_dim = config.num_heads, config.head_dim
        self._norm1, self._norm2 = _Norm(W, dtype, device), _Norm(W, dtype, device)
        self._qkv = _Linear(3 * W, (W,), dtype, device)
        self._proj = _Linear(W, (W,), dtype, device)
        self._up = _Linear(F, (W,), dtype, device)
        self._down = _Linear(W, (F,), dtype, device)

    def places(self) -> dict[str, torch.Tensor]:
        return _places(
            {
                "norm1": self._norm1,
                "norm2": self._norm2,
                "attn.qkv": self._qkv,
                "attn.proj": self._proj,
                "mlp.linear_fc1": self._up,
                "mlp.linear_fc2": self._down,
            }
        )

    def advance(
        self,
        x_NW: torch.Tensor,
        cos_sin: tuple[torch.Tensor, torch.Tensor],
        chunks: Callable[[], Iterator[slice]],
    ) -> None:
        """Update the residual stream in place."""
        H, E = self._num_heads, self._head_dim
        cos_NE, sin_NE = cos_sin
        q_HNE, k_HNE, v_HNE = x_NW.new_empty(3, H, len(x_NW), E).unbind()
        for rows in chunks():
            qkv_3HRE = self._qkv(self._norm1(x_NW[rows])).view(-1, 3, H, E).permute(1, 2, 0, 3)
            q_HNE[:, rows] = _turned(qkv_3HRE[0], cos_NE[rows], sin_NE[rows])
            k_HNE[:, rows] = _turned(qkv_3HRE[1], cos_NE[rows], sin_NE[rows])
            v_HNE[:, rows] = qkv_3HRE[2]
        for rows in chunks():
            o_1HRE = scaled_dot_product_attention(q_HNE[None, :, rows], k_HNE[None], v_HNE[None])
            x_NW[rows] += self._proj(o_1HRE[0].transpose(0, 1).flatten(1))
            x_NW[rows] += self._down(gelu(self._up(self._norm2(x_NW[rows])), approximate="tanh"))


def _turned(x_HRE: torch.Tensor, cos_RE: torch.Tensor, sin_RE: torch.Tensor) -> torch.Tensor:
    """In fp32, and left so."""
    x_HRE = x_HRE.float()
    first, second = x_HRE.chunk(2, dim=-1)
    return x_HRE * cos_RE + torch.cat((-second, first), dim=-1) * sin_RE


class _Linear:
    def __init__(
        self, num_out: int, in_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._weight = torch.empty(num_out, *in_shape, dtype=dtype, device=device)
        self._bias = torch.empty(num_out, dtype=dtype, device=device)

    def places(self) -> dict[str, torch.Tensor]:
        return {"weight": self._weight, "bias": self._bias}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self._weight.flatten(1), self._bias)


class _Norm:
    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._weight = torch.empty(width, dtype=dtype, device=device)
        self._bias = torch.empty(width, dtype=dtype, device=device)

    def places(self) -> dict[str, torch.Tensor]:
        return {"weight": self._weight, "bias": self._bias}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self._weight.shape, self._weight, self._bias, _EPS)


def _places(parts: Mapping[str, _Linear | _Norm | _Block]) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": place
        for part, owner in parts.items()
        for name, place in owner.places().items()
    }
