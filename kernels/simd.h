// What the CPU kernels share: vectors of floats, bf16, exp, matrix tiles, the way to the threads.
//
// Promise: a result's bits depend on its own operands only. Every dot product keeps LANES partial
// sums in the order of k and folds them in one fixed tree, whatever tile of rows and columns it is
// computed in; nothing is split by the number of threads. Compile with -ffp-contract=off, so that
// only `fma` fuses.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace simd {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int MAX_TILE_ROWS = 6;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8;
constexpr int MAX_TILE_ROWS = 3;
#else
constexpr int LANES = 4;
constexpr int MAX_TILE_ROWS = 3;
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

struct bf16 {
    uint16_t bits;
};

inline vf splat(float x) { return x - vf{}; }

inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) {  // to nearest even; a NaN stays one
    uint32_t u;
    std::memcpy(&u, &x, 4);
    p->bits = uint16_t(x == x ? (u + 0x7fffu + ((u >> 16) & 1u)) >> 16 : (u >> 16) | 0x40u);
}

inline vf load(const float* p) {
    vf x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
inline vf load(const bf16* p) {
    vh h;
    std::memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}
inline void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }
inline void store(bf16* p, vf x) {  // to nearest even; a NaN stays one
    vu u = (vu)x;
    vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    vu nan = (u >> 16) | 0x40u;
    vh h = __builtin_convertvector(x == x ? rounded : nan, vh);
    std::memcpy(p, &h, sizeof h);
}
// The first n < LANES elements; the rest reads as zero and is not written.
template <class T>
inline vf load(const T* p, int64_t n) {
    T padded[LANES] = {};
    std::memcpy(padded, p, n * sizeof(T));
    return load(padded);
}
template <class T>
inline void store(T* p, vf x, int64_t n) {
    T padded[LANES];
    store(padded, x);
    std::memcpy(p, padded, n * sizeof(T));
}

// Calls body(i, load, store) for every vector of [0, n): one code path for whole and last vectors.
template <class Body>
inline void for_vectors(int64_t n, Body&& body) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        body(
            i, [](auto* p) { return load(p); }, [](auto* p, vf x) { store(p, x); });
    if (int64_t rest = n - i)
        body(
            i, [rest](auto* p) { return load(p, rest); },
            [rest](auto* p, vf x) { store(p, x, rest); });
}

// Sum over the lanes of each of four vectors, all by the same tree.
inline void reduce4(vf a, vf b, vf c, vf d, float* out) {
#if defined(__AVX512F__)
    __m512 A = (__m512)a, B = (__m512)b, C = (__m512)c, D = (__m512)d;
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(A, B, 0x44), _mm512_shuffle_f32x4(A, B, 0xee));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(C, D, 0x44), _mm512_shuffle_f32x4(C, D, 0xee));
    __m512 s =
        _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4e));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xb1));
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, s)));
#else
    vf all[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        float lane[LANES];
        store(lane, all[i]);
        for (int half = LANES / 2; half; half /= 2)
            for (int j = 0; j < half; j++) lane[j] += lane[j + half];
        out[i] = lane[0];
    }
#endif
}
inline float reduce(vf a) {
    float out[4];
    reduce4(a, a, a, a, out);
    return out[0];
}
inline float reduce_max(vf a) {
    float lane[LANES];
    store(lane, a);
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) lane[j] = std::max(lane[j + half], lane[j]);
    return lane[0];
}
inline vf max(vf a, vf b) { return a > b ? a : b; }

// e^x to about 1 ulp; 0 below -87.3, the largest power that fits above 88.7, NaN for NaN.
inline vf exp(vf x) {
    vf y = x > splat(88.7f) ? splat(88.7f) : x;
    y = y < splat(-87.3f) ? splat(-87.3f) : y;
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vf shifted = fma(y, splat(1.44269504f), magic);
    vf n = shifted - magic;
    vf r = fma(n, splat(-0.693359375f), y);
    r = fma(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p * r, r, r) + 1.0f;
    // 2^n in two halves: n reaches 128, which one float exponent does not hold.
    vi whole = (vi)shifted - (vi)magic;
    vi half = whole >> 1;
    p = p * (vf)((half + 127) << 23) * (vf)((whole - half + 127) << 23);
    return x < splat(-87.3f) ? vf{} : p;
}
inline vf sigmoid(vf x) { return splat(1.0f) / (exp(-x) + 1.0f); }
inline vf silu(vf x) { return x / (exp(-x) + 1.0f); }

// Multiply-accumulate on raw operands: STEP elements of each operand into LANES partial sums.
template <class T>
struct Mac {
    static constexpr int STEP = LANES;
    typedef vf In;
    static In get(const T* p) { return load(p); }
    static vf mac(vf sum, In x, In w) { return fma(x, w, sum); }
};
#if defined(__AVX512BF16__) && defined(__AVX512F__)
template <>
struct Mac<bf16> {
    static constexpr int STEP = 32;
    typedef __m512i In;
    static In get(const bf16* p) { return _mm512_loadu_si512(p); }
    static vf mac(vf sum, In x, In w) {
        return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
    }
};
#endif

// out[r * N + n] = x_r . w_n over k elements. Asks for the weights `ahead` elements on: hardware
// does not follow rows of 1 or 2 KB by itself (8 rows through 32 experts, hidden 512, bf16, one
// core of an EPYC Turin: 1178 us without, 722 us with, November 2026).
template <class T, int R, int N>
__attribute__((noinline)) void dot_tile(const T* const* x, const T* const* w, int64_t k,
                                        int64_t ahead, float* out) {
    typedef Mac<T> M;
    vf sum[R][N] = {};
    int64_t i = 0;
    for (; i + M::STEP <= k; i += M::STEP) {
        typename M::In x_i[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) x_i[r] = M::get(x[r] + i);
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            typename M::In w_i = M::get(w[n] + i);
            if (LANES == 16) __builtin_prefetch(w[n] + i + ahead);  // a step is one cache line
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) sum[r][n] = M::mac(sum[r][n], x_i[r], w_i);
        }
    }
    if (int64_t rest = k - i) {
        T padded_x[R][M::STEP] = {}, padded_w[M::STEP] = {};
        for (int r = 0; r < R; r++) std::memcpy(padded_x[r], x[r] + i, rest * sizeof(T));
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            std::memcpy(padded_w, w[n] + i, rest * sizeof(T));
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                sum[r][n] = M::mac(sum[r][n], M::get(padded_x[r]), M::get(padded_w));
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        if (N % 4 == 0) {
#pragma GCC unroll 2
            for (int n = 0; n < N; n += 4)
                reduce4(sum[r][n], sum[r][n + 1 < N ? n + 1 : n], sum[r][n + 2 < N ? n + 2 : n],
                        sum[r][n + 3 < N ? n + 3 : n], out + r * N + n);
        } else {
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) out[r * N + n] = reduce(sum[r][n]);
        }
    }
}

// Dot products of `rows` rows with `units` units of WIDTH weight rows each, k elements long.
// row(m) is a row's pointer; col(u, i, n) the i-th weight row of a tile of n units from unit u;
// emit(m, u, R, n, out) takes a finished tile: out[r * n * WIDTH + i] for row m + r.
template <class T, int WIDTH, class Row, class Col, class Emit>
struct Dots {
    int64_t k;
    Row row;
    Col col;
    Emit emit;

    template <int R, int UNITS>
    void tile(const T* const* x, int64_t m, int64_t u) {
        constexpr int N = UNITS * WIDTH;
        const T* w[N];
        for (int i = 0; i < N; i++) w[i] = col(u, i, UNITS);
        float out[R * N];
        dot_tile<T, R, N>(x, w, k, UNITS * k * int64_t(sizeof(float) / sizeof(T)), out);
        emit(m, u, R, UNITS, out);
    }
    template <int R>
    void strip(int64_t m, int64_t first, int64_t last) {
        constexpr int UNITS = (R == 1 || (R == 2 && LANES == 16) ? 8 : 4) / WIDTH;
        const T* x[R];
        for (int r = 0; r < R; r++) x[r] = row(m + r);
        int64_t u = first;
        for (; u + UNITS <= last; u += UNITS) tile<R, UNITS>(x, m, u);
        for (; u < last; u++) tile<R, 1>(x, m, u);
    }
    void run(int64_t rows, int64_t first, int64_t last) {
        // Panels of weight rows that stay in the second-level cache while all rows pass by.
        int64_t unit_bytes = k * WIDTH * int64_t(sizeof(T));
        int64_t panel = rows <= MAX_TILE_ROWS ? last - first
                                              : std::max<int64_t>(8, 262144 / unit_bytes) / 8 * 8;
        int64_t tiles = (rows + MAX_TILE_ROWS - 1) / MAX_TILE_ROWS;
        for (; first < last; first += panel) {
            int64_t until = std::min(last, first + panel);
            for (int64_t t = 0; t < tiles; t++) {
                int64_t m = rows * t / tiles, end = rows * (t + 1) / tiles;
                switch (end - m) {
                    case 1: strip<1>(m, first, until); break;
                    case 2: strip<2>(m, first, until); break;
                    case 3: strip<3>(m, first, until); break;
#if defined(__AVX512F__)
                    case 4: strip<4>(m, first, until); break;
                    case 5: strip<5>(m, first, until); break;
                    case 6: strip<6>(m, first, until); break;
#endif
                }
            }
        }
    }
};
template <class T, int WIDTH = 1, class Row, class Col, class Emit>
inline void dots(int64_t rows, int64_t first, int64_t last, int64_t k, Row row, Col col,
                 Emit emit) {
    Dots<T, WIDTH, Row, Col, Emit>{k, row, col, emit}.run(rows, first, last);
}

// c[m][n] (+)= sum over k of a[m][k] * b[k][n], k ascending; n, ldb and ldc in whole vectors.
// With KEEP the sum starts from c, else from zero.
template <bool KEEP, int R, int V>
__attribute__((noinline)) void outer_tile(int64_t k, const float* a, int64_t lda, const float* b,
                                          int64_t ldb, float* c, int64_t ldc) {
    vf sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[r][v] = KEEP ? load(c + r * ldc + v * LANES) : vf{};
    for (int64_t i = 0; i < k; i++) {
        vf b_i[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) b_i[v] = load(b + i * ldb + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            vf a_i = splat(a[r * lda + i]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sum[r][v] = fma(a_i, b_i[v], sum[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(c + r * ldc + v * LANES, sum[r][v]);
}
template <bool KEEP>
inline void outer(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                  int64_t ldb, float* c, int64_t ldc) {
    constexpr int R = LANES == 16 ? 6 : 4, V = LANES == 16 ? 4 : 2;
    int64_t j = 0;
    auto strip = [&](auto vectors) {
        constexpr int W = decltype(vectors)::value;
        int64_t i = 0;
        for (; i + R <= m; i += R)
            outer_tile<KEEP, R, W>(k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
        for (; i < m; i++)
            outer_tile<KEEP, 1, W>(k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
        j += W * LANES;
    };
    while (j + V * LANES <= n) strip(std::integral_constant<int, V>{});
    while (j < n) strip(std::integral_constant<int, 1>{});
}

inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// A buffer that grows and is kept, one per place of use and calling thread.
class Scratch {
   public:
    template <class T = float>
    T* get(int64_t count) {
        size_t bytes = size_t(count) * sizeof(T) + 64;
        if (bytes > bytes_) {
            memory_.reset();
            memory_.reset(new char[bytes]);
            bytes_ = bytes;
        }
        return reinterpret_cast<T*>((uintptr_t(memory_.get()) + 63) & ~uintptr_t(63));
    }

   private:
    std::unique_ptr<char[]> memory_;
    size_t bytes_ = 0;
};

// Work below this many multiply-adds is not worth waking other threads for.
constexpr int64_t PARALLEL_MACS = 1 << 18;

// Hands out numbered tasks to the threads of team.cpp, whose entry point is set at load time; who
// takes which changes no bit. `share` returns when all of them are done.
typedef void (*TeamRun)(int64_t threads, int64_t tasks, void (*body)(void*, int64_t),
                        void* context);
static TeamRun team_run = nullptr;

struct Team {
    int64_t threads;

    Team(int64_t threads, int64_t macs) : threads(macs < PARALLEL_MACS ? 1 : threads) {}

    template <class Body>
    void share(int64_t tasks, Body&& body) const {
        if (threads < 2 || tasks < 2) {
            for (int64_t task = 0; task < tasks; task++) body(task);
            return;
        }
        auto call = [](void* context, int64_t task) {
            (*static_cast<std::remove_reference_t<Body>*>(context))(task);
        };
        team_run(threads, tasks, call, &body);
    }
};

}  // namespace simd

extern "C" void use_team(simd::TeamRun run) { simd::team_run = run; }
