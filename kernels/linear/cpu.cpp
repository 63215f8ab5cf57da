// Linear layers with weights as they are stored: [outputs, inputs], inputs contiguous.
// y [rows, f] = x [rows, d] w [f, d]^T; x and the residual have a row stride, the rest is dense.
#include "../dense.h"
#include "../norm.h"

using namespace simd;

namespace {

// y = x w^T + residual; without a residual it is null.
template <class T, class Out>
void linear(const T* x, int64_t ld_x, const T* w, const T* residual, int64_t ld_residual, Out* y,
            int64_t rows, int64_t d, int64_t f, int64_t threads) {
    linear_rows(Team(threads, rows * d * f), rows, d, f, x, ld_x, w,
                [&](int64_t m, int64_t j, float dot) {
                    put(y + m * f + j,
                        residual ? dot + to_float(residual[m * ld_residual + j]) : dot);
                });
}

template <class T>
T* normed(const T* x, int64_t ld_x, const T* norm, float eps, int64_t rows, int64_t d,
          int64_t threads) {
    static thread_local Scratch scratch;
    T* y = scratch.get<T>(rows * d);
    norm_rows(Team(threads, rows * d), rows, d, x, ld_x, norm, eps, y);
    return y;
}

template <class T>
void norm_linear(const T* x, int64_t ld_x, const T* norm, float eps, const T* w, T* y,
                 int64_t rows, int64_t d, int64_t f, int64_t threads) {
    const T* normed_x = normed(x, ld_x, norm, eps, rows, d, threads);
    linear<T, T>(normed_x, d, w, nullptr, 0, y, rows, d, f, threads);
}

template <class T>
void norm_swiglu_add(const T* x, int64_t ld_x, const T* norm, float eps, const T* gate_up,
                     const T* down, int64_t adds, T* y, int64_t rows, int64_t d, int64_t f,
                     int64_t threads) {
    static thread_local Scratch scratch;
    const T* normed_x = normed(x, ld_x, norm, eps, rows, d, threads);
    T* hidden = scratch.get<T>(rows * f);
    Team team(threads, 3 * rows * d * f);
    Blocks blocks(team, rows, f);
    team.share(blocks.count(), [&](int64_t task) {
        auto [m0, m1, f0, f1] = blocks[task];
        swiglu_rows<T>(
            m1 - m0, f0, f1, d, f, gate_up,
            [&, m0 = m0](int64_t m) { return normed_x + (m0 + m) * d; }, hidden + m0 * f);
    });
    linear<T, T>(hidden, f, down, adds ? x : nullptr, ld_x, y, rows, f, d, threads);
}

}  // namespace

#define EXPORT(NAME, T)                                                                          \
    extern "C" void linear_##NAME(const T* x, int64_t ld_x, const T* w, const T* residual,       \
                                  int64_t ld_residual, T* y, int64_t rows, int64_t d, int64_t f, \
                                  int64_t threads) {                                             \
        linear(x, ld_x, w, residual, ld_residual, y, rows, d, f, threads);                       \
    }                                                                                            \
    extern "C" void linear_fp32_##NAME(const T* x, int64_t ld_x, const T* w, float* y,           \
                                       int64_t rows, int64_t d, int64_t f, int64_t threads) {    \
        linear<T, float>(x, ld_x, w, nullptr, 0, y, rows, d, f, threads);                        \
    }                                                                                            \
    extern "C" void norm_linear_##NAME(const T* x, int64_t ld_x, const T* norm, float eps,       \
                                       const T* w, T* y, int64_t rows, int64_t d, int64_t f,     \
                                       int64_t threads) {                                        \
        norm_linear(x, ld_x, norm, eps, w, y, rows, d, f, threads);                              \
    }                                                                                            \
    extern "C" void norm_swiglu_add_##NAME(                                                      \
        const T* x, int64_t ld_x, const T* norm, float eps, const T* gate_up, const T* down,     \
        int64_t adds, T* y, int64_t rows, int64_t d, int64_t f, int64_t threads) {               \
        norm_swiglu_add(x, ld_x, norm, eps, gate_up, down, adds, y, rows, d, f, threads);        \
    }
EXPORT(f32, float)
EXPORT(bf16, bf16)
