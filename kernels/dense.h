// Matrix products with stored weights, in tasks that a team shares. The promise of simd.h holds
// here too: a row's bits depend on the row and the weights only.
#pragma once

#include "simd.h"

namespace simd {

// A rows x columns result cut into tasks: by columns first, since a task then reads its own weights
// only; by rows too where that leaves too few tasks.
struct Blocks {
    int64_t rows, columns, width, across, down;

    Blocks(const Team& team, int64_t rows, int64_t columns, int64_t width = 64)
        : rows(rows), columns(columns), width(width) {
        across = (columns + width - 1) / width;
        down = across >= 4 * team.threads ? 1 : std::max<int64_t>(1, rows / 64);
    }
    int64_t count() const { return rows ? across * down : 0; }
    struct Block {
        int64_t row, row_end, column, column_end;
    };
    Block operator[](int64_t task) const {
        int64_t part = task / across, column = task % across * width;
        return {rows * part / down, rows * (part + 1) / down, column,
                std::min(columns, column + width)};
    }
};

// emit(m, j, x_m . w_j) for every row m of x [rows, d] and every row j of w [f, d].
template <class T, class Emit>
inline void linear_rows(const Team& team, int64_t rows, int64_t d, int64_t f, const T* x,
                        int64_t ld_x, const T* w, Emit emit) {
    Blocks blocks(team, rows, f);
    team.share(blocks.count(), [&](int64_t task) {
        auto [m0, m1, f0, f1] = blocks[task];
        dots<T>(
            m1 - m0, f0, f1, d, [&, m0 = m0](int64_t m) { return x + (m0 + m) * ld_x; },
            [&](int64_t u, int i, int) { return w + (u + i) * d; },
            [&, m0 = m0](int64_t m, int64_t u, int tile_rows, int n, const float* out) {
                for (int r = 0; r < tile_rows; r++)
                    for (int i = 0; i < n; i++) emit(m0 + m + r, u + i, out[r * n + i]);
            });
    });
}

// hidden[m][j] = silu(gate_j . x_m) * (up_j . x_m) for j in [first, last); gate_up [2 f, d].
template <class T, class Row>
inline void swiglu_rows(int64_t rows, int64_t first, int64_t last, int64_t d, int64_t f,
                        const T* gate_up, Row row, T* hidden) {
    dots<T, 2>(
        rows, first, last, d, row,
        [&](int64_t u, int i, int n) {
            return gate_up + (i < n ? u + i : f + u + i - n) * d;
        },
        [&](int64_t m, int64_t u, int tile_rows, int n, const float* out) {
            constexpr int MOST = MAX_TILE_ROWS * 4;
            alignas(64) float gate[MOST + LANES], up[MOST + LANES];
            int count = tile_rows * n;
            for (int r = 0; r < tile_rows; r++)
                for (int i = 0; i < n; i++) {
                    gate[r * n + i] = out[r * 2 * n + i];
                    up[r * n + i] = out[r * 2 * n + n + i];
                }
            for (int i = count; i % LANES; i++) gate[i] = up[i] = 0;
            for (int i = 0; i < count; i += LANES)
                store(gate + i, silu(load(gate + i)) * load(up + i));
            for (int r = 0; r < tile_rows; r++)
                for (int i = 0; i < n; i++) put(hidden + (m + r) * f + u + i, gate[r * n + i]);
        });
}

}  // namespace simd
