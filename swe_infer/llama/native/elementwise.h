// Operations between the products: norms and rotary embeddings. Each rounds where the operations of
// swe_infer.llama.model round.
#pragma once

#include "tiles.h"

constexpr int COST = 4;  // cost of an element in multiplications, memory traffic and rounding included

// total = x + delta (not written if delta is null); out = its root mean square norm times weight.
extern "C" void add_rms_norm(element* total, element* out, const element* x, const element* delta,
                             const element* weight, float eps, int64_t rows, int64_t size, int64_t threads) {
#pragma omp parallel for num_threads(thread_count(threads, rows * size * COST))
    for (int64_t row = 0; row < rows; row++) {
        const element* from = x + row * size;
        Vector squares[PARTS] = {};
        for (int i = 0; i < size; i += WIDTH)
            for (int j = 0; j < PARTS; j++) {
                const int at = i + j * LANES, count = (int)size - at;
                Vector value = load(from + at, count);
                if (delta) {
                    value = rounded(value + load(delta + row * size + at, count));
                    store(total + row * size + at, value, count);
                }
                squares[j] = fused(value, value, squares[j]);
            }
        if (delta) from = total + row * size;
        const float scale = 1 / sqrtf(sum_of(squares) / (float)size + eps);
        for (int i = 0; i < size; i += LANES) {
            const int count = (int)size - i;
            store(out + row * size + i, rounded(load(from + i, count) * scale) * load(weight + i, count), count);
        }
    }
}

// Rotate `heads` heads of each token. `x` has `x_token` elements between tokens; out is contiguous. The first half of
// sin is negated.
extern "C" void rotate(element* out, const element* x, int64_t x_token, const element* cos, const element* sin,
                       int64_t tokens, int64_t heads, int64_t head_dim, int64_t threads) {
    const int half = (int)head_dim / 2;
#pragma omp parallel for num_threads(thread_count(threads, tokens * heads * head_dim * COST))
    for (int64_t token = 0; token < tokens; token++)
        for (int head = 0; head < heads; head++) {
            const element* from = x + token * x_token + head * head_dim;
            element* to = out + (token * heads + head) * head_dim;
            for (int i = 0; i < half; i += LANES) {
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
