// RMSNorm (zero-centred weight), and the norm, rotation and page write of queries and keys.
#include "../norm.h"

using namespace simd;

namespace {

template <class T>
void rms_norm(const T* x, int64_t ld_x, const T* w, T* y, int64_t rows, int64_t d, float eps,
              int64_t threads) {
    norm_rows(Team(threads, rows * d), rows, d, x, ld_x, w, eps, y);
}

template <class T>
void add_rms_norm(const T* x, int64_t ld_x, const T* residual, int64_t ld_residual, const T* w,
                  T* y, T* sum, int64_t rows, int64_t d, float eps, int64_t threads) {
    Team(threads, rows * d).share(rows, [&](int64_t t) {
        static thread_local Scratch scratch;
        float* wide = scratch.get(d);
        for_vectors(d, [&](int64_t i, auto get, auto set) {
            set(sum + t * d + i,
                get(residual + t * ld_residual + i) + get(x + t * ld_x + i));
            set(wide + i, get(sum + t * d + i));  // as rounded
        });
        norm_row(wide, w, y + t * d, d, eps);
    });
}

// y = rotate(normed(x)): pairs (i, i + r/2) of the first r of e elements turn, the rest pass.
template <class T>
inline void norm_rotate(const T* x, const T* w, const float* cos, const float* sin, T* y, int64_t e,
                        int64_t r, float eps, float* wide) {
    for_vectors(e, [&](int64_t i, auto get, auto set) { set(wide + i, get(x + i)); });
    vf scale = splat(inverse_rms(wide, e, eps));
    for_vectors(e, [&](int64_t i, auto get, auto set) {
        set(wide + i, get(wide + i) * scale * (get(w + i) + 1.0f));
    });
    int64_t half = r / 2;
    for (int64_t i = 0; i < half; i++) {
        float low = wide[i], high = wide[i + half];
        wide[i] = low * cos[i] - high * sin[i];
        wide[i + half] = high * cos[i + half] + low * sin[i + half];
    }
    for_vectors(e, [&](int64_t i, auto get, auto set) { set(y + i, get(wide + i)); });
}

// qg rows hold heads of 2 e (query, gate); kv is [pages, 2, groups, page_tokens, e].
template <class T>
void qk_norm_rope_write(const T* qg, int64_t ld_qg, const T* k, int64_t ld_k, const T* v,
                        int64_t ld_v, const T* q_weight, const T* k_weight, const float* cos,
                        const float* sin, T* kv, const int64_t* location, T* q, int64_t rows,
                        int64_t heads, int64_t groups, int64_t e, int64_t r, int64_t page_tokens,
                        float eps, int64_t threads) {
    Team(threads, rows * (heads + groups) * e * 2).share(rows, [&](int64_t t) {
        static thread_local Scratch scratch;
        float* wide = scratch.get(e);
        const float *cos_t = cos + t * r, *sin_t = sin + t * r;
        for (int64_t h = 0; h < heads; h++)
            norm_rotate(qg + t * ld_qg + h * 2 * e, q_weight, cos_t, sin_t,
                        q + (t * heads + h) * e, e, r, eps, wide);
        int64_t page = location[t] / page_tokens, offset = location[t] % page_tokens;
        for (int64_t g = 0; g < groups; g++) {
            T* to_k = kv + ((page * 2 * groups + g) * page_tokens + offset) * e;
            T* to_v = to_k + groups * page_tokens * e;
            norm_rotate(k + t * ld_k + g * e, k_weight, cos_t, sin_t, to_k, e, r, eps, wide);
            std::memcpy(to_v, v + t * ld_v + g * e, e * sizeof(T));
        }
    });
}

}  // namespace

#define EXPORT(NAME, T)                                                                           \
    extern "C" void rms_norm_##NAME(const T* x, int64_t ld_x, const T* w, T* y, int64_t rows,     \
                                    int64_t d, float eps, int64_t threads) {                      \
        rms_norm(x, ld_x, w, y, rows, d, eps, threads);                                           \
    }                                                                                             \
    extern "C" void add_rms_norm_##NAME(const T* x, int64_t ld_x, const T* residual,              \
                                        int64_t ld_residual, const T* w, T* y, T* sum,            \
                                        int64_t rows, int64_t d, float eps, int64_t threads) {    \
        add_rms_norm(x, ld_x, residual, ld_residual, w, y, sum, rows, d, eps, threads);           \
    }                                                                                             \
    extern "C" void qk_norm_rope_write_##NAME(                                                    \
        const T* qg, int64_t ld_qg, const T* k, int64_t ld_k, const T* v, int64_t ld_v,           \
        const T* q_weight, const T* k_weight, const float* cos, const float* sin, T* kv,          \
        const int64_t* location, T* q, int64_t rows, int64_t heads, int64_t groups, int64_t e,    \
        int64_t r, int64_t page_tokens, float eps, int64_t threads) {                             \
        qk_norm_rope_write(qg, ld_qg, k, ld_k, v, ld_v, q_weight, k_weight, cos, sin, kv,         \
                           location, q, rows, heads, groups, e, r, page_tokens, eps, threads);    \
    }
EXPORT(f32, float)
EXPORT(bf16, bf16)
