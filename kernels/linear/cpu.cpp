// Linear layers with weights as they are stored: [outputs, inputs], inputs contiguous.
// y [rows, f] = x [rows, d] w [f, d]^T; x has a row stride, the rest is dense.
#include "../dense.h"

using namespace simd;

namespace {

template <class T>
void linear(const T* x, int64_t ld_x, const T* w, T* y, int64_t rows, int64_t d, int64_t f,
            int64_t threads) {
    linear_rows(Team(threads, rows * d * f), rows, d, f, x, ld_x, w, y);
}

template <class T>
void swiglu_mlp(const T* x, int64_t ld_x, const T* gate_up, const T* down, T* y, int64_t rows,
                int64_t d, int64_t f, int64_t threads) {
    static thread_local Scratch scratch;
    T* hidden = scratch.get<T>(rows * f);
    Team team(threads, 3 * rows * d * f);
    Blocks blocks(team, rows, f);
    team.share(blocks.count(), [&](int64_t task) {
        auto [m0, m1, f0, f1] = blocks[task];
        swiglu_rows<T>(
            m1 - m0, f0, f1, d, f, gate_up,
            [&, m0 = m0](int64_t m) { return x + (m0 + m) * ld_x; }, hidden + m0 * f);
    });
    linear_rows(team, rows, f, d, hidden, f, down, y);
}

}  // namespace

#define EXPORT(NAME, T)                                                                          \
    extern "C" void linear_##NAME(const T* x, int64_t ld_x, const T* w, T* y, int64_t rows,      \
                                  int64_t d, int64_t f, int64_t threads) {                       \
        linear(x, ld_x, w, y, rows, d, f, threads);                                              \
    }                                                                                            \
    extern "C" void swiglu_mlp_##NAME(const T* x, int64_t ld_x, const T* gate_up, const T* down, \
                                      T* y, int64_t rows, int64_t d, int64_t f,                  \
                                      int64_t threads) {                                         \
        swiglu_mlp(x, ld_x, gate_up, down, y, rows, d, f, threads);                              \
    }
EXPORT(f32, float)
EXPORT(bf16, bf16)
