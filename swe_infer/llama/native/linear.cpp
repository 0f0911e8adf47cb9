// Products of activations with weights, x W^T, with sums in float.
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

__m512 biased(const float* sums, const element* bias, __mmask16 columns) {
    const __m512 x = _mm512_load_ps(sums);
    return bias ? _mm512_add_ps(x, load(bias, columns)) : x;
}

// `columns` of 32 sums for each row.
void store_panel(element* out, int64_t out_row, const float* sums, int rows, int columns, const element* bias) {
    const __mmask16 left = first_columns(columns), right = first_columns(columns - WIDE);
    for (int r = 0; r < rows; r++, out += out_row, sums += PANEL) {
        store(out, biased(sums, bias, left), left);
        store(out + WIDE, biased(sums + WIDE, bias ? bias + WIDE : nullptr, right), right);
    }
}

// 16 gated values for each row; rounded where an activation and a product after it round.
void store_gated(element* out, int64_t out_row, const float* sums, int rows) {
    for (int r = 0; r < rows; r++, out += out_row, sums += PANEL) {
        const __m512 gate = rounded(silu_of(rounded(_mm512_load_ps(sums))));
        store(out, _mm512_mul_ps(gate, rounded(_mm512_load_ps(sums + WIDE))));
    }
}

}  // namespace

// Elements of a packed weight of so many outputs, and inputs, which are a multiple of DEEP.
extern "C" int64_t packed_size(int outputs, int inputs) {
    return (int64_t)(outputs + PANEL - 1) / PANEL * PANEL * inputs;
}

// Where `gated`, the first half of `outputs` are gates, and half of them is a multiple of 16.
extern "C" void pack(element* packed, const element* weight, int outputs, int inputs, int gated, int threads) {
#pragma omp parallel for num_threads(useful(threads, (int64_t)outputs * inputs))
    for (int first = 0; first < outputs; first += PANEL)
        for (int column = 0; column < PANEL; column++) {
            const int output = gated ? first / 2 + column % WIDE + column / WIDE * (outputs / 2) : first + column;
            const element* from = weight + (int64_t)output * inputs;
            element* to = packed + (int64_t)first * inputs + column / WIDE * TILE;
            for (int d = 0; d < inputs; d += GRAIN) {
                element* place = to + d / DEEP * 2 * TILE + spot(d % DEEP, column % WIDE);
                if (output < outputs)
                    memcpy(place, from + d, GRAIN * sizeof(element));
                else
                    memset(place, 0, GRAIN * sizeof(element));
            }
        }
}

// Rows `ids` of a weight that is not gated, as they were before packing.
extern "C" void unpack(element* out, const element* packed, const int64_t* ids, int64_t count, int inputs, int threads) {
#pragma omp parallel for num_threads(useful(threads, count * inputs))
    for (int64_t i = 0; i < count; i++) {
        const int column = (int)(ids[i] % PANEL);
        const element* from = packed + ids[i] / PANEL * PANEL * inputs + column / WIDE * TILE;
        for (int d = 0; d < inputs; d += GRAIN)
            memcpy(out + i * inputs + d, from + d / DEEP * 2 * TILE + spot(d % DEEP, column % WIDE),
                   GRAIN * sizeof(element));
    }
}

// out (rows x outputs; half as many where gated) = x (rows x inputs) W^T + bias. A gated weight has no bias.
extern "C" void linear(element* out, const element* x, const element* packed, const element* bias, int64_t rows,
                       int outputs, int inputs, int gated, int threads) {
    const int chunks = inputs / DEEP, panels = (outputs + PANEL - 1) / PANEL, wide = gated ? WIDE : PANEL;
    const int64_t out_row = gated ? outputs / 2 : outputs;
    const int most = rows <= MOST_ROWS ? 4 : MOST_PANELS;  // panels that are read once are better divided evenly
    int group = GROUP_BYTES / (PANEL * inputs * (int)sizeof(element));
    group = group < 1 ? 1 : group > most ? most : group;
    const int blocks = (int)((rows + ROWS - 1) / ROWS), groups = (panels + group - 1) / group;
#pragma omp parallel num_threads(useful(threads, rows * outputs * inputs))
    {
        Tiles tiles;
        alignas(64) float sums[MOST_PANELS][MOST_ROWS * PANEL];
        const element* b[CHUNKS];
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
                    element* to = out + row * out_row + panel * wide;
                    if (gated)
                        store_gated(to, out_row, sums[panel - first], some);
                    else
                        store_panel(to, out_row, sums[panel - first], some, outputs - panel * PANEL,
                                    bias ? bias + panel * PANEL : nullptr);
                }
            }
        }
    }
}
