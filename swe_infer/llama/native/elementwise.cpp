// Operations between the products: norms, rotary embeddings, activations. Each rounds where the operations of
// swe_infer.llama.model round.
#include "kernels.h"

namespace {

constexpr int COST = 4;  // cost of an element in multiplications, memory traffic and rounding included

}  // namespace

// total = x + delta (not written if delta is null); out = its root mean square norm times weight.
extern "C" void add_rms_norm(element* total, element* out, const element* x, const element* delta,
                             const element* weight, float eps, int64_t rows, int size, int threads) {
#pragma omp parallel for num_threads(thread_count(threads, rows * size * COST))
    for (int64_t row = 0; row < rows; row++) {
        const element* from = x + row * size;
        element* to = out + row * size;
        Vector squares = splat(0);
        for (int i = 0; i < size; i += WIDTH) {
            Vector value = load(from + i, size - i);
            if (delta) {
                value = rounded(value + load(delta + row * size + i, size - i));
                store(total + row * size + i, value, size - i);
            }
            squares = fused(value, value, squares);
        }
        if (delta) from = total + row * size;
        const Vector scale = splat(1 / sqrtf(sum_of(squares) / (float)size + eps));
        for (int i = 0; i < size; i += WIDTH) {
            const Vector normed = rounded(load(from + i, size - i) * scale);
            store(to + i, normed * load(weight + i, size - i), size - i);
        }
    }
}

// Rotate `heads` heads of each token. `x` has `x_token` elements between tokens; out is contiguous. The first half of
// sin is negated.
extern "C" void rotate(element* out, const element* x, int64_t x_token, const element* cos, const element* sin,
                       int64_t tokens, int heads, int head_dim, int threads) {
    const int half = head_dim / 2;
#pragma omp parallel for num_threads(thread_count(threads, tokens * heads * head_dim * COST))
    for (int64_t token = 0; token < tokens; token++)
        for (int head = 0; head < heads; head++) {
            const element* from = x + token * x_token + head * head_dim;
            element* to = out + (token * heads + head) * head_dim;
            for (int i = 0; i < half; i += WIDTH) {
                const int count = half - i;
                const Vector first = load(from + i, count), second = load(from + half + i, count);
                const element* c = cos + token * head_dim + i;
                const element* s = sin + token * head_dim + i;
                const Vector low = rounded(first * load(c, count)), high = rounded(second * load(c + half, count));
                store(to + i, fused(second, load(s, count), low), count);
                store(to + half + i, fused(first, load(s + half, count), high), count);
            }
        }
}

// out (rows x size) = silu(first half of gate_up's columns) * second half.
extern "C" void silu_mul(element* out, const element* gate_up, int64_t rows, int size, int threads) {
#pragma omp parallel for num_threads(thread_count(threads, rows * size * COST))
    for (int64_t row = 0; row < rows; row++)
        for (int i = 0; i < size; i += WIDTH) {
            const Vector gate = rounded(silu_of(load(gate_up + 2 * row * size + i, size - i)));
            const Vector up = load(gate_up + (2 * row + 1) * size + i, size - i);
            store(out + row * size + i, gate * up, size - i);
        }
}
