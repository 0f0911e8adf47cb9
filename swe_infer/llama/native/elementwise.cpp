// What lies between the products: norms, rotary embeddings, activations. Each rounds to bfloat16 where the operations
// of swe_infer.llama.model round.
#include "kernels.h"

namespace {

constexpr int FEW_ROWS = 16;  // for which a second thread is not worth waking

__mmask16 there(int columns) {
    return columns >= 16 ? 0xffff : (__mmask16)((1 << columns) - 1);
}

__m512 load_some(const bf16* from, __mmask16 some) {
    return widen(_mm256_maskz_loadu_epi16(some, from));
}

void store_some(bf16* to, __mmask16 some, __m512 x) {
    _mm256_mask_storeu_epi16(to, some, narrow(x));
}

}  // namespace

// total = x + delta (no sum is made where delta is null); out = its root mean square norm times weight.
extern "C" void add_rms_norm(bf16* total, bf16* out, const bf16* x, const bf16* delta, const bf16* weight, float eps,
                             int64_t rows, int size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows > FEW_ROWS)
    for (int64_t row = 0; row < rows; row++) {
        const bf16* from = x + row * size;
        bf16* to = out + row * size;
        __m512 squares = _mm512_setzero_ps();
        for (int i = 0; i < size; i += 16) {
            const __mmask16 some = there(size - i);
            __m512 value = load_some(from + i, some);
            if (delta) {
                value = rounded(_mm512_add_ps(value, load_some(delta + row * size + i, some)));
                store_some(total + row * size + i, some, value);
            }
            squares = _mm512_fmadd_ps(value, value, squares);
        }
        if (delta) from = total + row * size;
        const __m512 scale = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) / (float)size + eps));
        for (int i = 0; i < size; i += 16) {
            const __mmask16 some = there(size - i);
            const __m512 normed = rounded(_mm512_mul_ps(load_some(from + i, some), scale));
            store_some(to + i, some, _mm512_mul_ps(normed, load_some(weight + i, some)));
        }
    }
}

// Rotate `heads` heads of each token, which has `x_token` elements; out is contiguous. The first half of sin is negated.
extern "C" void rotate(bf16* out, const bf16* x, int64_t x_token, const bf16* cos, const bf16* sin, int64_t tokens,
                       int heads, int head_dim, int threads) {
    const int half = head_dim / 2;
#pragma omp parallel for num_threads(threads) if (tokens > FEW_ROWS)
    for (int64_t token = 0; token < tokens; token++)
        for (int head = 0; head < heads; head++) {
            const bf16* from = x + token * x_token + head * head_dim;
            bf16* to = out + (token * heads + head) * head_dim;
            for (int i = 0; i < half; i += 16) {
                const __mmask16 some = there(half - i);
                const __m512 first = load_some(from + i, some), second = load_some(from + half + i, some);
                const bf16* c = cos + token * head_dim + i;
                const bf16* s = sin + token * head_dim + i;
                store_some(to + i, some, _mm512_fmadd_ps(second, load_some(s, some),
                                                         rounded(_mm512_mul_ps(first, load_some(c, some)))));
                store_some(to + half + i, some, _mm512_fmadd_ps(first, load_some(s + half, some),
                                                                rounded(_mm512_mul_ps(second, load_some(c + half, some)))));
            }
        }
}

// out (rows x size) = silu(the first half of gate_up's columns) times the second half.
extern "C" void silu_mul(bf16* out, const bf16* gate_up, int64_t rows, int size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows > FEW_ROWS)
    for (int64_t row = 0; row < rows; row++)
        for (int i = 0; i < size; i += 16) {
            const __mmask16 some = there(size - i);
            const __m512 gate = rounded(silu_of(load_some(gate_up + 2 * row * size + i, some)));
            const __m512 up = load_some(gate_up + (2 * row + 1) * size + i, some);
            store_some(out + row * size + i, some, _mm512_mul_ps(gate, up));
        }
}
