// RMSNorm of rows, with a zero-centred weight.
#pragma once

#include "simd.h"

namespace simd {

// 1 / sqrt(mean(x^2) + eps)
inline float inverse_rms(const float* x, int64_t n, float eps) {
    vf sum{};
    for_vectors(n, [&](int64_t i, auto get, auto) {
        vf v = get(x + i);
        sum = fma(v, v, sum);
    });
    return 1.0f / std::sqrt(reduce(sum) / float(n) + eps);
}

template <class T>
inline void norm_row(const float* x, const T* w, T* y, int64_t d, float eps) {
    vf scale = splat(inverse_rms(x, d, eps));
    for_vectors(d, [&](int64_t i, auto get, auto set) {
        set(y + i, get(x + i) * scale * (get(w + i) + 1.0f));
    });
}

template <class T>
inline void norm_rows(const Team& team, int64_t rows, int64_t d, const T* x, int64_t ld_x,
                      const T* w, float eps, T* y) {
    team.share(rows, [&](int64_t t) {
        static thread_local Scratch scratch;
        float* wide = scratch.get(d);
        for_vectors(d, [&](int64_t i, auto get, auto set) {
            set(wide + i, get(x + t * ld_x + i));
        });
        norm_row(wide, w, y + t * d, d, eps);
    });
}

}  // namespace simd
