// Causal grouped-query attention over pages, gated. kv is [pages, 2, G, page_tokens, E].
//
// Softmax runs online over blocks of at most 64 tokens inside one page, in the order of the tokens.
// Decode cuts a long sequence into parts of PART_TOKENS, a fixed number, and merges them in order,
// so that how the work is shared changes no bit.
#include "../simd.h"

using namespace simd;

namespace {

constexpr int64_t BLOCK = 64;          // tokens scored at once
constexpr int64_t PART_TOKENS = 1024;  // of one decode task
constexpr int64_t CHUNK = 64;          // query rows of one prefill task, on the absolute grid

template <class T>
struct Pages {
    const T* kv;
    int64_t G, page_tokens, E;

    const T* k(int64_t page, int64_t g) const { return kv + (page * 2 * G + g) * page_tokens * E; }
    const T* v(int64_t page, int64_t g) const { return k(page, g) + G * page_tokens * E; }

    // Calls body(k, v, token, count) for the blocks of tokens [first, last); first starts a block.
    template <class Body>
    void blocks(const int32_t* table, int64_t g, int64_t first, int64_t last, Body&& body) const {
        for (int64_t token = first; token < last;) {
            int64_t offset = token % page_tokens;
            int64_t count = std::min({last - token, page_tokens - offset, BLOCK - offset % BLOCK});
            int64_t page = table[token / page_tokens];
            body(k(page, g) + offset * E, v(page, g) + offset * E, token, count);
            token += count;
        }
    }
};

// Turns scores [BLOCK] (filled with -inf behind `count`) into weights; returns what earlier sums
// are to be multiplied by.
inline float soften(float* score, float& most, float& sum) {
    vf top = load(score);
    for (int64_t i = LANES; i < BLOCK; i += LANES) top = max(top, load(score + i));
    float now = reduce_max(top);
    now = now > most ? now : most;
    float keep = most == now ? 1.0f : std::exp(most - now);
    vf total{};
    for (int64_t i = 0; i < BLOCK; i += LANES) {
        vf w = exp(load(score + i) - splat(now));
        store(score + i, w);
        total = total + w;
    }
    sum = sum * keep + reduce(total);
    most = now;
    return keep;
}

template <class T>
inline void write_gated(const float* x, float scale, const T* gate, T* o, int64_t e) {
    for_vectors(e, [&](int64_t i, auto get, auto set) {
        set(o + i, get(x + i) * splat(scale) * sigmoid(get(gate + i)));
    });
}

// ---- decode: a task is a part of a row's tokens, for the query heads of one KV head ----

template <class T>
struct Decode {
    const T *q, *qg;
    Pages<T> pages;
    const int32_t *page_table, *length;
    T* o;
    int64_t ld_q, ld_qg, ld_table, rows, heads;
    float scale;
    const int64_t* first_part;  // of each row; one more at the end
    float* partial;             // [parts, heads, E + 2]: sums, their maximum, their weight

    int64_t group() const { return heads / pages.G; }
    int64_t stride() const { return pages.E + 2; }

    void part(int64_t task) const {
        static thread_local Scratch scratch;
        int64_t g = task % pages.G, part = task / pages.G, E = pages.E, row = 0;
        while (first_part[row + 1] <= part) row++;
        int64_t first = (part - first_part[row]) * PART_TOKENS;
        int64_t last = std::min<int64_t>(length[row], first + PART_TOKENS);
        float* score = scratch.get(group() * BLOCK);
        float* out = partial + (part * heads + g * group()) * stride();
        const T* q_row = q + row * ld_q + g * group() * E;
        for (int64_t j = 0; j < group(); j++) {
            std::fill(out + j * stride(), out + j * stride() + E, 0.0f);
            out[j * stride() + E] = -std::numeric_limits<float>::infinity();
            out[j * stride() + E + 1] = 0;
        }
        pages.blocks(
            page_table + row * ld_table, g, first, last,
            [&](const T* k, const T* v, int64_t, int64_t count) {
                std::fill(score, score + group() * BLOCK, -std::numeric_limits<float>::infinity());
                dots<T>(
                    group(), 0, count, E, [&](int64_t j) { return q_row + j * E; },
                    [&](int64_t u, int i, int) { return k + (u + i) * E; },
                    [&](int64_t j, int64_t u, int tile_rows, int n, const float* dot) {
                        for (int r = 0; r < tile_rows; r++)
                            for (int i = 0; i < n; i++)
                                score[(j + r) * BLOCK + u + i] = dot[r * n + i] * scale;
                    });
                for (int64_t j = 0; j < group(); j++) {
                    float* to = out + j * stride();
                    float keep = soften(score + j * BLOCK, to[E], to[E + 1]);
                    add_weighted(v, score + j * BLOCK, count, keep, to);
                }
            });
    }
    // to = keep * to + sum over tokens of weight * v
    void add_weighted(const T* v, const float* weight, int64_t count, float keep, float* to) const {
        int64_t E = pages.E, e = 0;
        for (; e + 4 * LANES <= E; e += 4 * LANES) {
            vf sum[4];
#pragma GCC unroll 4
            for (int m = 0; m < 4; m++) sum[m] = load(to + e + m * LANES) * splat(keep);
            for (int64_t t = 0; t < count; t++) {
                vf w = splat(weight[t]);
#pragma GCC unroll 4
                for (int m = 0; m < 4; m++)
                    sum[m] = fma(w, load(v + t * E + e + m * LANES), sum[m]);
            }
#pragma GCC unroll 4
            for (int m = 0; m < 4; m++) store(to + e + m * LANES, sum[m]);
        }
        for_vectors(E - e, [&](int64_t i, auto get, auto set) {
            vf sum = get(to + e + i) * splat(keep);
            for (int64_t t = 0; t < count; t++)
                sum = fma(splat(weight[t]), get(v + t * E + e + i), sum);
            set(to + e + i, sum);
        });
    }
    void merge(int64_t row, int64_t h) const {
        int64_t E = pages.E;
        T* to = o + (row * heads + h) * E;
        if (first_part[row] == first_part[row + 1]) {
            std::memset(to, 0, E * sizeof(T));
            return;
        }
        float* all = partial + (first_part[row] * heads + h) * stride();
        for (int64_t part = first_part[row] + 1; part < first_part[row + 1]; part++) {
            const float* next = partial + (part * heads + h) * stride();
            float most = all[E] > next[E] ? all[E] : next[E];
            float keep = std::exp(all[E] - most), take = std::exp(next[E] - most);
            for_vectors(E, [&](int64_t i, auto get, auto set) {
                set(all + i, get(all + i) * splat(keep) + get(next + i) * splat(take));
            });
            all[E + 1] = all[E + 1] * keep + next[E + 1] * take;
            all[E] = most;
        }
        write_gated(all, 1.0f / all[E + 1], qg + row * ld_qg + h * 2 * E + E, to, E);
    }
};

template <class T>
void decode(const T* q, int64_t ld_q, const T* qg, int64_t ld_qg, const T* kv,
            const int32_t* page_table, int64_t ld_table, const int32_t* length, T* o, int64_t rows,
            int64_t heads, int64_t G, int64_t page_tokens, int64_t E, float scale,
            int64_t threads) {
    static thread_local Scratch parts_memory, partial_memory;
    int64_t* first_part = parts_memory.get<int64_t>(rows + 1);
    int64_t parts = 0, tokens = 0;
    for (int64_t row = 0; row < rows; row++) {
        first_part[row] = parts;
        parts += (length[row] + PART_TOKENS - 1) / PART_TOKENS;
        tokens += length[row];
    }
    first_part[rows] = parts;
    Decode<T> op{q,    qg,   {kv, G, page_tokens, E}, page_table, length, o, ld_q, ld_qg, ld_table,
                 rows, heads, scale, first_part, partial_memory.get(parts * heads * (E + 2))};
    Team(threads, tokens * heads * E * 2).share(parts * G, [&](int64_t task) { op.part(task); });
    for (int64_t row = 0; row < rows; row++)
        for (int64_t h = 0; h < heads; h++) op.merge(row, h);
}

// ---- prefill: a task is a chunk of a slice's queries, for the query heads of one KV head ----

template <class T>
struct Prefill {
    const T *q, *qg;
    Pages<T> pages;
    T* o;
    int64_t ld_q, ld_qg, heads;
    float scale;

    // Rows [row, row + count) at positions from `position`, of the sequence with this page table.
    void chunk(const int32_t* table, int64_t position, int64_t row, int64_t count,
               int64_t g) const {
        static thread_local Scratch scratch;
        int64_t group = heads / pages.G, E = pages.E, Ep = padded(E), n = count * group;
        float* memory = scratch.get(n * E + n * Ep + 2 * n + E * BLOCK + BLOCK * Ep + n * BLOCK);
        float *out = memory, *v_wide = out + n * Ep, *kt = v_wide + BLOCK * Ep;
        float *score = kt + E * BLOCK, *q_wide = score + n * BLOCK;
        float *most = q_wide + n * E, *sum = most + n;
        // Row c, head j of the group stands at j * count + c.
        for (int64_t j = 0; j < group; j++)
            for (int64_t c = 0; c < count; c++) {
                const T* from = q + (row + c) * ld_q + (g * group + j) * E;
                float* to = q_wide + (j * count + c) * E;
                for_vectors(E, [&](int64_t i, auto get, auto set) {
                    set(to + i, get(from + i) * splat(scale));
                });
            }
        std::fill(out, out + n * Ep, 0.0f);
        std::fill(v_wide, v_wide + BLOCK * Ep, 0.0f);
        std::fill(most, most + n, -std::numeric_limits<float>::infinity());
        std::fill(sum, sum + n, 0.0f);
        pages.blocks(
            table, g, 0, position + count,
            [&](const T* k, const T* v, int64_t token, int64_t tokens) {
                for (int64_t t = 0; t < BLOCK; t++)
                    for (int64_t i = 0; i < E; i++)
                        kt[i * BLOCK + t] = t < tokens ? to_float(k[t * E + i]) : 0.0f;
                for (int64_t t = 0; t < tokens; t++)
                    for_vectors(E, [&](int64_t i, auto get, auto set) {
                        set(v_wide + t * Ep + i, get(v + t * E + i));
                    });
                outer<false>(n, BLOCK, E, q_wide, E, kt, BLOCK, score, BLOCK);
                for (int64_t m = 0; m < n; m++) {
                    // Query c sees tokens up to its own position. A block always holds token 0 of
                    // the sequence or comes after one that did, so a row's maximum is finite.
                    int64_t seen = std::min(tokens, position + m % count - token + 1);
                    float *to = score + m * BLOCK, *acc = out + m * Ep;
                    if (seen <= 0) {
                        std::fill(to, to + BLOCK, 0.0f);
                        continue;
                    }
                    std::fill(to + seen, to + BLOCK, -std::numeric_limits<float>::infinity());
                    float keep = soften(to, most[m], sum[m]);
                    if (keep != 1.0f)
                        for (int64_t i = 0; i < Ep; i += LANES)
                            store(acc + i, load(acc + i) * splat(keep));
                }
                outer<true>(n, Ep, tokens, score, BLOCK, v_wide, Ep, out, Ep);
            });
        for (int64_t j = 0; j < group; j++)
            for (int64_t c = 0; c < count; c++) {
                int64_t h = g * group + j, m = j * count + c;
                write_gated(out + m * Ep, 1.0f / sum[m], qg + (row + c) * ld_qg + h * 2 * E + E,
                            o + ((row + c) * heads + h) * E, E);
            }
    }
};

template <class T>
void prefill(const T* q, int64_t ld_q, const T* qg, int64_t ld_qg, const T* kv,
             const int32_t* page_table, int64_t ld_table, const int32_t* start,
             const int32_t* offset, T* o, int64_t slices, int64_t heads, int64_t G,
             int64_t page_tokens, int64_t E, float scale, int64_t threads) {
    struct Task {
        int64_t slice, position, row, count;
    };
    std::vector<Task> tasks;
    int64_t macs = 0;
    for (int64_t s = 0; s < slices; s++) {
        int64_t end = start[s] + offset[s + 1] - offset[s];
        for (int64_t position = start[s]; position < end;) {
            int64_t until = std::min(end, position / CHUNK * CHUNK + CHUNK);
            tasks.push_back({s, position, offset[s] + position - start[s], until - position});
            macs += 2 * (until - position) * until * heads * E;
            position = until;
        }
    }
    std::stable_sort(tasks.begin(), tasks.end(),  // the longest first: they share out evenly
                     [](const Task& a, const Task& b) { return a.position > b.position; });
    Prefill<T> op{q, qg, {kv, G, page_tokens, E}, o, ld_q, ld_qg, heads, scale};
    Team(threads, macs).share(int64_t(tasks.size()) * G, [&](int64_t task) {
        const Task& t = tasks[task / G];
        op.chunk(page_table + t.slice * ld_table, t.position, t.row, t.count, task % G);
    });
}

}  // namespace

#define EXPORT(NAME, T)                                                                           \
    extern "C" void attention_decode_##NAME(                                                      \
        const T* q, int64_t ld_q, const T* qg, int64_t ld_qg, const T* kv, const int32_t* table,  \
        int64_t ld_table, const int32_t* length, T* o, int64_t rows, int64_t heads, int64_t G,    \
        int64_t page_tokens, int64_t E, float scale, int64_t threads) {                           \
        decode(q, ld_q, qg, ld_qg, kv, table, ld_table, length, o, rows, heads, G, page_tokens,   \
               E, scale, threads);                                                                \
    }                                                                                             \
    extern "C" void attention_prefill_##NAME(                                                     \
        const T* q, int64_t ld_q, const T* qg, int64_t ld_qg, const T* kv, const int32_t* table,  \
        int64_t ld_table, const int32_t* start, const int32_t* offset, T* o, int64_t slices,      \
        int64_t heads, int64_t G, int64_t page_tokens, int64_t E, float scale,                    \
        int64_t threads) {                                                                        \
        prefill(q, ld_q, qg, ld_qg, kv, table, ld_table, start, offset, o, slices, heads, G,      \
                page_tokens, E, scale, threads);                                                  \
    }
EXPORT(f32, float)
EXPORT(bf16, bf16)
