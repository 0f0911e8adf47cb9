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
        __m512 squares = _mm512_setzero_ps();
        for (int i = 0; i < size; i += 16) {
            const __mmask16 mask = first_columns(size - i);
            __m512 value = load(from + i, mask);
            if (delta) {
                value = rounded(_mm512_add_ps(value, load(delta + row * size + i, mask)));
                store(total + row * size + i, value, mask);
            }
            squares = _mm512_fmadd_ps(value, value, squares);
        }
        if (delta) from = total + row * size;
        const __m512 scale = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) / (float)size + eps));
        for (int i = 0; i < size; i += 16) {
            const __mmask16 mask = first_columns(size - i);
            const __m512 normed = rounded(_mm512_mul_ps(load(from + i, mask), scale));
            store(to + i, _mm512_mul_ps(normed, load(weight + i, mask)), mask);
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
            for (int i = 0; i < half; i += 16) {
                const __mmask16 mask = first_columns(half - i);
                const __m512 first = load(from + i, mask), second = load(from + half + i, mask);
                const element* c = cos + token * head_dim + i;
                const element* s = sin + token * head_dim + i;
                const __m512 low = rounded(_mm512_mul_ps(first, load(c, mask)));
                const __m512 high = rounded(_mm512_mul_ps(second, load(c + half, mask)));
                store(to + i, _mm512_fmadd_ps(second, load(s, mask), low), mask);
                store(to + half + i, _mm512_fmadd_ps(first, load(s + half, mask), high), mask);
            }
        }
}

// out (rows x size) = silu(first half of gate_up's columns) * second half.
extern "C" void silu_mul(element* out, const element* gate_up, int64_t rows, int size, int threads) {
#pragma omp parallel for num_threads(thread_count(threads, rows * size * COST))
    for (int64_t row = 0; row < rows; row++)
        for (int i = 0; i < size; i += 16) {
            const __mmask16 mask = first_columns(size - i);
            const __m512 gate = rounded(silu_of(load(gate_up + 2 * row * size + i, mask)));
            const __m512 up = load(gate_up + (2 * row + 1) * size + i, mask);
            store(out + row * size + i, _mm512_mul_ps(gate, up), mask);
        }
}
