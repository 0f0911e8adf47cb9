// Products of activations with weights, x W^T, in bfloat16 with sums in float.
//
// Weights are packed once, in panels of 32 outputs whose tiles follow one another. A thread takes as many panels as
// its second-level cache holds and runs rows past them. A gated weight (SwiGLU; Shazeer, 2020) has panels of 16 gates
// and the 16 values that they let through, so that one product gives the gated values and nothing else is stored.
#include "kernels.h"

namespace {

constexpr int PANEL = 2 * WIDE;
constexpr int GROUP_BYTES = 512 << 10;  // of panels that a thread takes together
constexpr int MOST_PANELS = 32;         // of them
constexpr int ROWS = 512;               // that it runs past them
constexpr int CHUNKS = 8;               // of the depth: so many of the rows stay in the first-level cache meanwhile

__mmask16 there(int columns) {
    return columns >= WIDE ? 0xffff : columns <= 0 ? 0 : (__mmask16)((1 << columns) - 1);
}

__m512 biased(const float* sums, const bf16* bias, __mmask16 columns) {
    const __m512 x = _mm512_load_ps(sums);
    return bias ? _mm512_add_ps(x, widen(_mm256_maskz_loadu_epi16(columns, bias))) : x;
}

// `columns` of 32 sums for each row.
void store(bf16* out, int64_t out_row, const float* sums, int rows, int columns, const bf16* bias) {
    const __mmask16 left = there(columns), right = there(columns - WIDE);
    for (int r = 0; r < rows; r++, out += out_row, sums += PANEL) {
        _mm256_mask_storeu_epi16(out, left, narrow(biased(sums, bias, left)));
        _mm256_mask_storeu_epi16(out + WIDE, right, narrow(biased(sums + WIDE, bias ? bias + WIDE : nullptr, right)));
    }
}

// 16 gated values for each row; rounded where an activation in bfloat16 and a product after it round.
void store_gated(bf16* out, int64_t out_row, const float* sums, int rows) {
    for (int r = 0; r < rows; r++, out += out_row, sums += PANEL) {
        const __m512 gate = rounded(silu_of(rounded(_mm512_load_ps(sums))));
        store_bf16(out, _mm512_mul_ps(gate, rounded(_mm512_load_ps(sums + WIDE))));
    }
}

}  // namespace

// Elements of a packed weight of so many outputs, and inputs, which are a multiple of 32.
extern "C" int64_t packed_size(int outputs, int inputs) {
    return (int64_t)(outputs + PANEL - 1) / PANEL * PANEL * inputs;
}

// Where `gated`, the first half of `outputs` are gates, and half of them is a multiple of 16.
extern "C" void pack(bf16* packed, const bf16* weight, int outputs, int inputs, int gated, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int first = 0; first < outputs; first += PANEL)
        for (int column = 0; column < PANEL; column++) {
            const int output = gated ? first / 2 + column % WIDE + column / WIDE * (outputs / 2) : first + column;
            const bf16* from = weight + (int64_t)output * inputs;
            bf16* to = packed + (int64_t)first * inputs + column / WIDE * TILE + 2 * (column % WIDE);
            for (int d = 0; d < inputs; d += 2)
                if (output < outputs)
                    memcpy(to + d / DEEP * 2 * TILE + d % DEEP * WIDE, from + d, 2 * sizeof(bf16));
                else
                    memset(to + d / DEEP * 2 * TILE + d % DEEP * WIDE, 0, 2 * sizeof(bf16));
        }
}

// Rows `ids` of a weight that is not gated, as they were before packing.
extern "C" void unpack(bf16* out, const bf16* packed, const int64_t* ids, int64_t count, int inputs, int threads) {
#pragma omp parallel for num_threads(threads) if (count > 64)
    for (int64_t i = 0; i < count; i++) {
        const int column = (int)(ids[i] % PANEL);
        const bf16* from = packed + ids[i] / PANEL * PANEL * inputs + column / WIDE * TILE + 2 * (column % WIDE);
        for (int d = 0; d < inputs; d += 2)
            memcpy(out + i * inputs + d, from + d / DEEP * 2 * TILE + d % DEEP * WIDE, 2 * sizeof(bf16));
    }
}

// out (rows x outputs; half as many where gated) = x (rows x inputs) W^T + bias. A gated weight has no bias.
extern "C" void linear(bf16* out, const bf16* x, const bf16* packed, const bf16* bias, int64_t rows, int outputs,
                       int inputs, int gated, int threads) {
    const int chunks = inputs / DEEP, panels = (outputs + PANEL - 1) / PANEL, wide = gated ? WIDE : PANEL;
    const int64_t out_row = gated ? outputs / 2 : outputs;
    const int most = rows <= MOST_ROWS ? 4 : MOST_PANELS;  // panels that are read once are better divided evenly
    int group = GROUP_BYTES / (PANEL * inputs * (int)sizeof(bf16));
    group = group < 1 ? 1 : group > most ? most : group;
    const int blocks = (int)((rows + ROWS - 1) / ROWS), groups = (panels + group - 1) / group;
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        alignas(64) float sums[MOST_PANELS][MOST_ROWS * PANEL];
        const bf16* b[CHUNKS];
#pragma omp for schedule(dynamic)
        for (int i = 0; i < blocks * groups; i++) {
            const int first = i / blocks * group, last = first + group < panels ? first + group : panels;
            const int64_t begin = (int64_t)(i % blocks) * ROWS, end = begin + ROWS < rows ? begin + ROWS : rows;
            for (int64_t row = begin; row < end; row += MOST_ROWS) {
                const int some = end - row < MOST_ROWS ? (int)(end - row) : MOST_ROWS;
                for (int chunk = 0; chunk < chunks; chunk += CHUNKS)
                    for (int panel = first; panel < last; panel++) {
                        const int deep = chunks - chunk < CHUNKS ? chunks - chunk : CHUNKS;
                        for (int c = 0; c < deep; c++)
                            b[c] = packed + ((int64_t)panel * chunks + chunk + c) * 2 * TILE;
                        tiles.multiply(sums[panel - first], PANEL, x + row * inputs + chunk * DEEP, inputs, some, b, TILE,
                                       deep, chunk == 0);
                    }
                for (int panel = first; panel < last; panel++) {
                    bf16* to = out + row * out_row + panel * wide;
                    if (gated)
                        store_gated(to, out_row, sums[panel - first], some);
                    else
                        store(to, out_row, sums[panel - first], some, outputs - panel * PANEL,
                              bias ? bias + panel * PANEL : nullptr);
                }
            }
        }
    }
}
