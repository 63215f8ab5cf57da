// Gated DeltaNet from projections to gated norm: one decode step per row, or chunks of a prefill.
//
// The unit of work is a key head with the value heads it serves: it owns their channels of the
// convolution columns and their part of the state, so units share nothing.
#include "../simd.h"

using namespace simd;

namespace {

constexpr int64_t CHUNK = 64;  // of the absolute grid
constexpr int64_t BLOCK = 6;   // rows of a tile in the triangular products

template <class T>
struct Mixer {
    const T* mixed;
    const T* z;
    const T* b;
    const T* a;
    int64_t ld_mixed, ld_z, ld_b, ld_a;
    const T* conv_w;  // [channels, taps]
    const float *A_log, *dt_bias, *norm;
    T* conv;       // [slots, channels, taps - 1]
    float* state;  // [slots, N, K, V]
    const int64_t* slot;
    T* o;  // [rows, N, V]
    int64_t H, N, K, V, taps;
    float eps;

    int64_t group() const { return N / H; }
    int64_t channels() const { return 2 * H * K + N * V; }
    int64_t width() const { return 2 * K + group() * V; }  // channels of one key head

    // Calls body(local channel, global channel, count) for the q, k and v channels of key head h.
    template <class Body>
    void ranges(int64_t h, Body&& body) const {
        body(0, h * K, K);
        body(K, (H + h) * K, K);
        body(2 * K, 2 * H * K + h * group() * V, group() * V);
    }
    float beta(int64_t row, int64_t n) const {
        return 1.0f / (1.0f + std::exp(-to_float(b[row * ld_b + n])));
    }
    float log_decay(int64_t row, int64_t n) const {
        float x = to_float(a[row * ld_a + n]) + dt_bias[n];
        return -std::exp(A_log[n]) * (x > 20.0f ? x : std::log1p(std::exp(x)));
    }
    static void scale_to_unit(float* x, int64_t n, float times) {
        vf sum{};
        for_vectors(n, [&](int64_t i, auto get, auto) {
            vf v = get(x + i);
            sum = fma(v, v, sum);
        });
        vf scale = splat(1.0f / std::sqrt(reduce(sum) + 1e-6f));
        for_vectors(n, [&](int64_t i, auto get, auto set) {
            set(x + i, get(x + i) * scale * splat(times));
        });
    }
    void normalise(float* y) const {  // q, then k, at the front of a key head's channels
        scale_to_unit(y, K, 1.0f / std::sqrt(float(K)));
        scale_to_unit(y + K, K, 1.0f);
    }
    void gated_norm(const float* x, int64_t row, int64_t n) const {
        vf sum{};
        for_vectors(V, [&](int64_t i, auto get, auto) {
            vf v = get(x + i);
            sum = fma(v, v, sum);
        });
        vf scale = splat(1.0f / std::sqrt(reduce(sum) / float(V) + eps));
        for_vectors(V, [&](int64_t i, auto get, auto set) {
            set(o + (row * N + n) * V + i,
                get(x + i) * scale * get(norm + i) * silu(get(z + row * ld_z + n * V + i)));
        });
    }

    // ---- decode ----

    void decode(int64_t row, int64_t h) const {
        static thread_local Scratch scratch;
        float* y = scratch.get(width() + LANES + V);
        float* o_n = y + padded(width());
        T* columns = conv + slot[row] * channels() * (taps - 1);
        ranges(h, [&](int64_t local, int64_t first, int64_t count) {
            const T* x = mixed + row * ld_mixed + first;
            const T* w = conv_w + first * taps;
            T* c = columns + first * (taps - 1);
            if (taps == 4)
                shift<4>(x, w, c, y + local, count);
            else
                for (int64_t i = 0; i < count; i++)
                    shift_one(x[i], w + i * taps, c + i * (taps - 1), y + local + i, taps);
        });
        for_vectors(width(), [&](int64_t i, auto get, auto set) { set(y + i, silu(get(y + i))); });
        normalise(y);
        for (int64_t i = 0; i < group(); i++) {
            int64_t n = h * group() + i;
            advance(state + (slot[row] * N + n) * K * V, std::exp(log_decay(row, n)), beta(row, n),
                    y, y + K, y + 2 * K + i * V, o_n);
            gated_norm(o_n, row, n);
        }
    }
    static void shift_one(T x, const T* w, T* c, float* y, int64_t taps) {
        float sum = 0;
        for (int64_t i = 0; i < taps - 1; i++) {
            sum += to_float(c[i]) * to_float(w[i]);
            c[i] = i + 1 < taps - 1 ? c[i + 1] : x;
        }
        *y = sum + to_float(x) * to_float(w[taps - 1]);
    }
    template <int TAPS>
    static void shift(const T* x, const T* w, T* c, float* y, int64_t count) {
        for (int64_t i = 0; i < count; i++)
            shift_one(x[i], w + i * TAPS, c + i * (TAPS - 1), y + i, TAPS);
    }
    // o = S^T q after S <- decay S + k (beta (v - decay S^T k))^T, some columns at a time.
    void advance(float* S, float decay, float beta, const float* q, const float* k, const float* v,
                 float* o_n) const {
        int64_t j = 0;
        auto get = [](const float* p) { return load(p); };
        auto set = [](float* p, vf x) { store(p, x); };
        for (; j + 4 * LANES <= V; j += 4 * LANES)
            advance_columns<4>(S + j, decay, beta, q, k, v + j, o_n + j, get, set);
        for (; j + LANES <= V; j += LANES)
            advance_columns<1>(S + j, decay, beta, q, k, v + j, o_n + j, get, set);
        if (int64_t rest = V - j)
            advance_columns<1>(
                S + j, decay, beta, q, k, v + j, o_n + j,
                [rest](const float* p) { return load(p, rest); },
                [rest](float* p, vf x) { store(p, x, rest); });
    }
    template <int VECTORS, class Get, class Set>
    void advance_columns(float* S, float decay, float beta, const float* q, const float* k,
                         const float* v, float* o_n, Get get, Set set) const {
        vf known[VECTORS] = {}, out[VECTORS] = {}, u[VECTORS];
        for (int64_t i = 0; i < K; i++)
#pragma GCC unroll 4
            for (int m = 0; m < VECTORS; m++)
                known[m] = fma(splat(k[i]), get(S + i * V + m * LANES), known[m]);
#pragma GCC unroll 4
        for (int m = 0; m < VECTORS; m++)
            u[m] = splat(beta) * (get(v + m * LANES) - splat(decay) * known[m]);
        for (int64_t i = 0; i < K; i++)
#pragma GCC unroll 4
            for (int m = 0; m < VECTORS; m++) {
                float* at = S + i * V + m * LANES;
                vf s = fma(splat(k[i]), u[m], get(at) * splat(decay));
                set(at, s);
                out[m] = fma(splat(q[i]), s, out[m]);
            }
#pragma GCC unroll 4
        for (int m = 0; m < VECTORS; m++) set(o_n + m * LANES, out[m]);
    }

    // ---- prefill ----

    struct Buffers {
        float *w, *raw, *y, *S, *kt, *kt_decayed, *gram, *qk, *a, *p, *q, *fresh, *out, *G, *e, *f;
    };

    // What is asked of a prefill besides its outputs: after these rows, a copy in these slots.
    struct Snapshots {
        const int64_t *row, *slot;
        int64_t count;

        int64_t after(int64_t packed_row) const {  // -1: none
            for (int64_t i = 0; i < count; i++)
                if (row[i] == packed_row) return slot[i];
            return -1;
        }
    };

    // Rows [first, first + count) of the slice that starts at position `start`, for key head h.
    void prefill(int64_t slot_s, int64_t start, int64_t first, int64_t count, int64_t h,
                 const Snapshots& snapshots) const {
        static thread_local Scratch scratch;
        int64_t wide = padded(width()) + LANES, Vp = padded(V);
        int64_t sizes[] = {taps * wide,   (CHUNK + taps) * wide, CHUNK * wide, group() * K * Vp,
                           K * CHUNK,     K * CHUNK,             CHUNK * CHUNK, CHUNK * CHUNK,
                           CHUNK * CHUNK, CHUNK * CHUNK,         CHUNK * K,    CHUNK * Vp,
                           CHUNK * Vp,    CHUNK,                 CHUNK,        CHUNK};
        int64_t total = 0;
        for (int64_t size : sizes) total += padded(size);
        float* memory = scratch.get(total);
        Buffers at;
        float** field = &at.w;
        for (int64_t size : sizes) {
            *field++ = memory;
            memory += padded(size);
        }

        int64_t saved = taps - 1;
        T* columns = conv + slot_s * channels() * saved;
        std::fill(at.w, at.w + taps * wide, 0.0f);
        std::fill(at.raw, at.raw + (CHUNK + taps) * wide, 0.0f);
        ranges(h, [&](int64_t local, int64_t global, int64_t size) {
            for (int64_t c = 0; c < size; c++) {
                for (int64_t i = 0; i < taps; i++)
                    at.w[i * wide + local + c] = to_float(conv_w[(global + c) * taps + i]);
                for (int64_t i = 0; i < saved && start > 0; i++)
                    at.raw[i * wide + local + c] = to_float(columns[(global + c) * saved + i]);
            }
        });
        float* pool = state + (slot_s * N + h * group()) * K * V;
        std::fill(at.S, at.S + group() * K * Vp, 0.0f);
        if (start > 0)
            for (int64_t i = 0; i < group() * K; i++)
                std::memcpy(at.S + i * Vp, pool + i * V, V * sizeof(float));

        for (int64_t done = 0; done < count;) {
            int64_t size = std::min(count - done, CHUNK - (start + done) % CHUNK);
            chunk(at, first + done, size, h, wide, Vp);
            std::memmove(at.raw, at.raw + size * wide, saved * wide * sizeof(float));
            done += size;
            int64_t snapshot = snapshots.after(first + done - 1);
            if (snapshot >= 0) keep(at, snapshot, h, wide, Vp);
        }
        keep(at, slot_s, h, wide, Vp);
    }
    // Key head h's columns and states, into a slot.
    void keep(const Buffers& at, int64_t to, int64_t h, int64_t wide, int64_t Vp) const {
        int64_t saved = taps - 1;
        T* columns = conv + to * channels() * saved;
        ranges(h, [&](int64_t local, int64_t global, int64_t size) {
            for (int64_t c = 0; c < size; c++)
                for (int64_t i = 0; i < saved; i++)
                    put(columns + (global + c) * saved + i, at.raw[i * wide + local + c]);
        });
        float* pool = state + (to * N + h * group()) * K * V;
        for (int64_t i = 0; i < group() * K; i++)
            std::memcpy(pool + i * V, at.S + i * Vp, V * sizeof(float));
    }

    void chunk(const Buffers& at, int64_t row, int64_t C, int64_t h, int64_t wide,
               int64_t Vp) const {
        int64_t Cp = padded(C), saved = taps - 1;
        for (int64_t t = 0; t < C; t++) {
            ranges(h, [&](int64_t local, int64_t global, int64_t size) {
                float* to = at.raw + (saved + t) * wide + local;
                for_vectors(size, [&](int64_t i, auto get, auto set) {
                    set(to + i, get(mixed + (row + t) * ld_mixed + global + i));
                });
            });
            for (int64_t i = 0; i < wide; i += LANES) {
                vf sum{};
                for (int64_t tap = 0; tap < taps; tap++)
                    sum = sum + load(at.raw + (t + tap) * wide + i) * load(at.w + tap * wide + i);
                store(at.y + t * wide + i, silu(sum));
            }
            normalise(at.y + t * wide);
        }
        const float *q = at.y, *k = at.y + K;
        for (int64_t i = 0; i < K; i++) {
            for (int64_t t = 0; t < C; t++) at.kt[i * Cp + t] = k[t * wide + i];
            for (int64_t t = C; t < Cp; t++) at.kt[i * Cp + t] = 0;
        }
        outer<false>(C, Cp, K, k, wide, at.kt, Cp, at.gram, Cp);
        outer<false>(C, Cp, K, q, wide, at.kt, Cp, at.qk, Cp);
        for (int64_t i = 0; i < group(); i++)
            value_head(at, row, C, Cp, h * group() + i, at.y + 2 * K + i * V, wide,
                       at.S + i * K * Vp, Vp);
    }

    void value_head(const Buffers& at, int64_t row, int64_t C, int64_t Cp, int64_t n,
                    const float* v, int64_t wide, float* S, int64_t Vp) const {
        const float *q = at.y, *k = at.y + K;
        float sum = 0;
        for (int64_t t = 0; t < Cp; t++) at.G[t] = sum += t < C ? log_decay(row + t, n) : 0.0f;
        float last = at.G[C - 1];
        for (int64_t t = 0; t < Cp; t += LANES) {
            store(at.e + t, exp(load(at.G + t)));
            store(at.f + t, exp(splat(last) - load(at.G + t)));
        }

        // a = -(strictly lower beta_i e^(G_i - G_j) k_i.k_j); p = lower e^(G_i - G_j) q_i.k_j.
        // fresh = beta (V - e^G K S): what the state before the chunk does not predict.
        outer<false>(C, Vp, K, k, wide, S, Vp, at.fresh, Vp);
        for (int64_t i = 0; i < C; i++) {
            float beta_i = beta(row + i, n);
            for (int64_t j = 0; j < Cp; j += LANES) {
                vf index;
                for (int lane = 0; lane < LANES; lane++) index[lane] = float(j + lane);
                vf decay = exp(splat(at.G[i]) - load(at.G + j));
                vf past = index < splat(float(i)) ? decay : vf{};
                vf present = index <= splat(float(i)) ? decay : vf{};
                store(at.a + i * Cp + j, splat(-beta_i) * past * load(at.gram + i * Cp + j));
                store(at.p + i * Cp + j, present * load(at.qk + i * Cp + j));
            }
            for (int64_t j = 0; j < Vp; j += LANES) {
                float* to = at.fresh + i * Vp + j;
                store(to, splat(beta_i) * (load(v + i * wide + j) - splat(at.e[i]) * load(to)));
            }
            for (int64_t j = 0; j < K; j++) at.q[i * K + j] = at.e[i] * q[i * wide + j];
        }
        // Forward substitution turns `fresh` into what each token writes.
        for (int64_t i = 0; i < C; i += BLOCK) {
            int64_t until = std::min(C, i + BLOCK);
            outer<true>(until - i, Vp, i, at.a + i * Cp, Cp, at.fresh, Vp, at.fresh + i * Vp, Vp);
            for (int64_t j = i + 1; j < until; j++)
                outer<true>(1, Vp, j - i, at.a + j * Cp + i, Cp, at.fresh + i * Vp, Vp,
                            at.fresh + j * Vp, Vp);
        }
        outer<false>(C, Vp, K, at.q, K, S, Vp, at.out, Vp);
        for (int64_t i = 0; i < C; i += BLOCK) {
            int64_t until = std::min(C, i + BLOCK);
            outer<true>(until - i, Vp, until, at.p + i * Cp, Cp, at.fresh, Vp, at.out + i * Vp, Vp);
        }
        for (int64_t i = 0; i < C; i++) gated_norm(at.out + i * Vp, row + i, n);

        vf kept = exp(splat(last));
        for (int64_t i = 0; i < K * Vp; i += LANES) store(S + i, load(S + i) * kept);
        for (int64_t i = 0; i < K; i++)
            for (int64_t t = 0; t < Cp; t += LANES)
                store(at.kt_decayed + i * Cp + t, load(at.kt + i * Cp + t) * load(at.f + t));
        outer<true>(K, Vp, C, at.kt_decayed, Cp, at.fresh, Vp, S, Vp);
    }
};

}  // namespace

#define EXPORT(NAME, T)                                                                           \
    extern "C" void gated_delta_decode_##NAME(                                                    \
        const T* mixed, int64_t ld_mixed, const T* z, int64_t ld_z, const T* b, int64_t ld_b,     \
        const T* a, int64_t ld_a, const T* conv_w, const float* A_log, const float* dt_bias,      \
        const float* norm, T* conv, float* state, const int64_t* slot, T* o, int64_t rows,        \
        int64_t H, int64_t N, int64_t K, int64_t V, int64_t taps, float eps, int64_t threads) {   \
        Mixer<T> mixer{mixed, z,    b,    a,     ld_mixed, ld_z, ld_b, ld_a, conv_w, A_log,       \
                       dt_bias, norm, conv, state, slot,   o,    H,    N,    K,      V,           \
                       taps,  eps};                                                               \
        Team(threads, rows * N * K * V * 2)                                                       \
            .share(rows * H, [&](int64_t task) { mixer.decode(task / H, task % H); });            \
    }                                                                                             \
    extern "C" void gated_delta_prefill_##NAME(                                                   \
        const T* mixed, int64_t ld_mixed, const T* z, int64_t ld_z, const T* b, int64_t ld_b,     \
        const T* a, int64_t ld_a, const T* conv_w, const float* A_log, const float* dt_bias,      \
        const float* norm, T* conv, float* state, const int64_t* slot, T* o, int64_t rows,        \
        int64_t H, int64_t N, int64_t K, int64_t V, int64_t taps, float eps,                      \
        const int32_t* start, const int32_t* offset, int64_t slices, const int64_t* emit_row,     \
        const int64_t* emit_slot, int64_t emits, int64_t threads) {                               \
        Mixer<T> mixer{mixed, z,    b,    a,     ld_mixed, ld_z, ld_b, ld_a, conv_w, A_log,       \
                       dt_bias, norm, conv, state, slot,   o,    H,    N,    K,      V,           \
                       taps,  eps};                                                               \
        Team(threads, rows * N * K * V * 4).share(slices * H, [&](int64_t task) {                 \
            int64_t s = task / H, count = offset[s + 1] - offset[s];                              \
            if (count)                                                                            \
                mixer.prefill(slot[s], start[s], offset[s], count, task % H,                      \
                              {emit_row, emit_slot, emits});                                      \
        });                                                                                       \
    }
EXPORT(f32, float)
EXPORT(bf16, bf16)
