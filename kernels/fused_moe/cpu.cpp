// Mixture of experts: route, then per expert with rows gate | up and down, then the shared expert.
//
// A row's sum runs over its experts in ascending order and ends with the shared expert, in fp32,
// whoever its neighbours are; the residual is added last. The down projection is cut by output columns, so that one thread owns
// every sum it adds to.
#include "../dense.h"
#include "../norm.h"

using namespace simd;

namespace {

struct Choice {
    int32_t expert;
    float weight;
};

// The top_k largest logits, ties to the lower index, NaN last; weights are their softmax.
void choose(const float* logits, int64_t experts, int64_t top_k, Choice* out) {
    int64_t count = 0;
    for (int64_t j = 0; j < experts; j++) {
        float logit = logits[j] == logits[j] ? logits[j] : -std::numeric_limits<float>::infinity();
        if (count == top_k && !(logit > out[count - 1].weight)) continue;
        int64_t at = count < top_k ? count++ : count - 1;
        for (; at > 0 && logit > out[at - 1].weight; at--) out[at] = out[at - 1];
        out[at] = {int32_t(j), logit};
    }
    float most = out[0].weight, sum = 0;
    for (int64_t i = 0; i < top_k; i++) sum += out[i].weight = std::exp(out[i].weight - most);
    for (int64_t i = 0; i < top_k; i++) out[i].weight /= sum;
}

template <class T>
struct Moe {
    const T *x, *router, *gate_up, *down, *shared_gate_up, *shared_down, *shared_gate;
    const T* residual;  // null: only what is added to it
    T* y;
    int64_t ld_residual, rows, d, experts, width, shared_width, top_k;

    // Rows in expert order: those of expert j are order[begin[j]] .. order[begin[j + 1]].
    Choice* choices;
    float* shared_weight;
    int64_t* begin;
    int32_t* order;
    float* weight;
    T *hidden, *shared_hidden;

    void route(int64_t task) {
        static thread_local Scratch scratch;
        constexpr int64_t PART = 16;
        float* logits = scratch.get(PART * experts);
        int64_t first = task * PART, count = std::min(rows - first, PART);
        auto row = [&](int64_t m) { return x + (first + m) * d; };
        dots<T>(
            count, 0, experts, d, row, [&](int64_t u, int i, int) { return router + (u + i) * d; },
            [&](int64_t m, int64_t u, int tile_rows, int n, const float* out) {
                for (int r = 0; r < tile_rows; r++)
                    std::copy(out + r * n, out + r * n + n, logits + (m + r) * experts + u);
            });
        dots<T>(
            count, 0, 1, d, row, [&](int64_t, int, int) { return shared_gate; },
            [&](int64_t m, int64_t, int tile_rows, int, const float* out) {
                for (int r = 0; r < tile_rows; r++)
                    shared_weight[first + m + r] = 1.0f / (1.0f + std::exp(-out[r]));
            });
        for (int64_t m = 0; m < count; m++)
            choose(logits + m * experts, experts, top_k, choices + (first + m) * top_k);
    }

    void sort() {
        std::fill(begin, begin + experts + 2, 0);
        for (int64_t i = 0; i < rows * top_k; i++) begin[choices[i].expert + 2]++;
        for (int64_t j = 1; j <= experts; j++) begin[j + 1] += begin[j];
        for (int64_t i = 0; i < rows * top_k; i++) {
            int64_t at = begin[choices[i].expert + 1]++;
            order[at] = int32_t(i / top_k);
            weight[at] = choices[i].weight;
        }
    }

    void run(const Team& team) {
        team.share((rows + 15) / 16, [&](int64_t task) { route(task); });
        sort();

        constexpr int64_t COLUMNS = 32;
        int64_t blocks = (width + COLUMNS - 1) / COLUMNS;
        Blocks shared(team, rows, shared_width, COLUMNS);
        team.share(experts * blocks + shared.count(), [&](int64_t task) {
            if (task < experts * blocks) {
                int64_t j = task / blocks, first = task % blocks * COLUMNS, from = begin[j];
                swiglu_rows<T>(
                    begin[j + 1] - from, first, std::min(width, first + COLUMNS), d, width,
                    gate_up + j * 2 * width * d,
                    [&](int64_t m) { return x + order[from + m] * d; }, hidden + from * width);
            } else {
                auto [m0, m1, f0, f1] = shared[task - experts * blocks];
                swiglu_rows<T>(
                    m1 - m0, f0, f1, d, shared_width, shared_gate_up,
                    [&, m0 = m0](int64_t m) { return x + (m0 + m) * d; },
                    shared_hidden + m0 * shared_width);
            }
        });
        constexpr int64_t OUT = 64;
        team.share((d + OUT - 1) / OUT, [&](int64_t task) {
            combine(task * OUT, std::min(d, task * OUT + OUT));
        });
    }

    // Columns [first, last) of the result.
    void combine(int64_t first, int64_t last) {
        static thread_local Scratch scratch;
        int64_t count = last - first;
        float* sum = scratch.get(rows * count);
        std::fill(sum, sum + rows * count, 0.0f);
        for (int64_t j = 0; j < experts; j++) {
            int64_t from = begin[j];
            dots<T>(
                begin[j + 1] - from, first, last, width,
                [&](int64_t m) { return hidden + (from + m) * width; },
                [&](int64_t u, int i, int) { return down + (j * d + u + i) * width; },
                [&](int64_t m, int64_t u, int tile_rows, int n, const float* out) {
                    for (int r = 0; r < tile_rows; r++) {
                        float* to = sum + order[from + m + r] * count + u - first;
                        for (int i = 0; i < n; i++) to[i] += weight[from + m + r] * out[r * n + i];
                    }
                });
        }
        dots<T>(
            rows, first, last, shared_width,
            [&](int64_t m) { return shared_hidden + m * shared_width; },
            [&](int64_t u, int i, int) { return shared_down + (u + i) * shared_width; },
            [&](int64_t m, int64_t u, int tile_rows, int n, const float* out) {
                for (int r = 0; r < tile_rows; r++) {
                    float* to = sum + (m + r) * count + u - first;
                    for (int i = 0; i < n; i++) to[i] += shared_weight[m + r] * out[r * n + i];
                }
            });
        for (int64_t m = 0; m < rows; m++)
            for_vectors(count, [&](int64_t i, auto get, auto set) {
                vf total = get(sum + m * count + i);
                if (residual) total += get(residual + m * ld_residual + first + i);
                set(y + m * d + first + i, total);
            });
    }
};

template <class T>
void fused_moe_add(const T* residual, int64_t ld_residual, const T* norm, float eps,
                   const T* router, const T* gate_up, const T* down, const T* shared_gate_up,
                   const T* shared_down, const T* shared_gate, int64_t adds, T* y, int64_t rows,
                   int64_t d, int64_t experts, int64_t width, int64_t shared_width, int64_t top_k,
                   int64_t threads) {
    static thread_local Scratch normed, choices, shared_weight, begin, order, weight, hidden,
        shared_hidden;
    T* x = normed.get<T>(rows * d);
    norm_rows(Team(threads, rows * d), rows, d, residual, ld_residual, norm, eps, x);
    Moe<T> moe{x, router, gate_up, down, shared_gate_up, shared_down, shared_gate,
               adds ? residual : nullptr,
               y, ld_residual, rows, d, experts, width, shared_width, top_k,
               choices.get<Choice>(rows * top_k), shared_weight.get(rows),
               begin.get<int64_t>(experts + 2), order.get<int32_t>(rows * top_k),
               weight.get(rows * top_k), hidden.get<T>(rows * top_k * width),
               shared_hidden.get<T>(rows * shared_width)};
    moe.run(Team(threads, rows * 3 * d * (top_k * width + shared_width)));
}

}  // namespace

#define EXPORT(NAME, T)                                                                           \
    extern "C" void fused_moe_add_##NAME(                                                         \
        const T* residual, int64_t ld_residual, const T* norm, float eps, const T* router,        \
        const T* gate_up, const T* down, const T* shared_gate_up, const T* shared_down,           \
        const T* shared_gate, int64_t adds, T* y, int64_t rows, int64_t d, int64_t experts,       \
        int64_t width, int64_t shared_width, int64_t top_k, int64_t threads) {                    \
        fused_moe_add(residual, ld_residual, norm, eps, router, gate_up, down, shared_gate_up,    \
                      shared_down, shared_gate, adds, y, rows, d, experts, width, shared_width,   \
                      top_k, threads);                                                            \
    }
EXPORT(f32, float)
EXPORT(bf16, bf16)
