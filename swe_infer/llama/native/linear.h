// Products of activations with weights, x W^T, accumulated in float.
//
// Weights are packed once (kernels.py), in panels of 32 outputs: all tiles of the first 16, then those of the others. A
// thread keeps a group of panels in its second-level cache and streams rows past it. Few rows are bound by memory: they
// read two panels alternately, since memory is faster in several streams. A gated weight (SwiGLU; Shazeer, 2020) has
// panels of 16 gates and their 16 values, so that one product computes the gated values without storing intermediates.
//
// Float weights that bfloat16 or float16 represents exactly, as in most checkpoints, are packed as such: this halves
// the memory traffic, and AMX can multiply bfloat16. No precision is lost, since activations stay float.
#pragma once

#include "tiles.h"

constexpr int PANEL = 2 * WIDTH;
constexpr int GROUP_BYTES = (LANES == 16 ? 512 : 1024) << 10;  // panels that a thread processes together
constexpr int MAX_PANELS = 32;                                 // in a group
constexpr int BLOCK_ROWS = LANES == 16 ? MAX_ROWS : 36;        // rows of one product
constexpr int STREAMED_ROWS = 512;                             // past a panel group
constexpr int STREAMS = 2;                                     // panels that few rows alternate between
constexpr int STREAM_CHUNKS = 2;                               // tiles of one turn

// As PackedWeight of kernels.py.
struct Weight {
    const void* packed;
    const element* bias;  // or null
    int64_t outputs, inputs;
    int64_t gated;  // the first half of the outputs are gates; half of them is a multiple of 16
    int64_t type;   // 0: packed as elements, 1: as bfloat16, 2: as float16
};

// A block of rows of activations, in the layout that products with weights of type W read. Floats are
// copied, since rows that are a power of two apart would evict each other from the cache.
template <typename W>
class Activations {
public:
    using Layout = TileLayout<W>;
    static constexpr int DEPTH = 512 / sizeof(element);  // so that the rows stay in the first-level cache
    static constexpr int CHUNKS = DEPTH / Layout::DEPTH;
    static constexpr bool COPIED = sizeof(element) == sizeof(float);
    static constexpr bool APART = COPIED;  // sum each such part of the depth apart, which is more precise

    // Load rows that are `row` elements apart, over the depth of `chunks` tiles.
    void load_rows(const element* x, int64_t row, int rows, int chunks) {
        x_ = x, row_ = (int)row, rows_ = rows;
        for (int r = 0; COPIED && r < rows; r++)
            memcpy(copy_[r], x + r * row, chunks * Layout::DEPTH * sizeof(element));
    }

    // C (or 0, if `zero_init`) + the loaded rows, from tile `first` of the depth, times a panel.
    void multiply(float* c, const W* const* b, int64_t second, int first, int chunks, bool zero_init) {
        const W* ahead = Tiles::MATRIX || rows_ < 4 ? nullptr : b[0] + 4 * Layout::TILE;  // few rows wait for memory
        const element* x = (COPIED ? copy_[0] : x_) + first * Layout::DEPTH;
        const int row = COPIED ? DEPTH : row_;
        tiles_.multiply(VectorProduct<W>{c, PANEL, x, row, b, second, chunks, zero_init, ahead}, rows_);
    }

private:
    const element* x_ = nullptr;
    int row_ = 0, rows_ = 0;
    Tiles tiles_;
    alignas(64) element copy_[BLOCK_ROWS][DEPTH];
};

#if defined(__AMX_BF16__) && !defined(BFLOAT16)

// A float has 24 bits of precision and is the sum of three bfloat16 numbers of 8 bits each.
template <>
class Activations<bfloat16> {
public:
    static constexpr int CHUNKS = 4;
    static constexpr bool APART = false;

    void load_rows(const float* x, int64_t row, int rows, int chunks) {
        rows_ = rows;
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < chunks; i++) split(tiles_of(r, i) + r % 16 * DEPTH, x + r * row + i * DEPTH);
    }

    void multiply(float* c, const bfloat16* const* b, int64_t second, int /* first */, int chunks, bool zero_init) {
        const SplitMatrix a{parts_, DEPTH, PARTS * TILE, TILE, CHUNKS * PARTS * TILE};
        tiles_.multiply<PARTS>(c, PANEL, a, rows_, b, second, chunks, zero_init);
    }

private:
    static constexpr int PARTS = 3, DEPTH = TileLayout<bfloat16>::DEPTH, TILE = TileLayout<bfloat16>::TILE;

    // The tile of the first part for the 16 rows that include `row`.
    bfloat16* tiles_of(int row, int chunk) { return parts_ + (row / 16 * CHUNKS + chunk) * PARTS * TILE; }

    // Split one row of a tile into one tile per part.
    static void split(bfloat16* to, const float* x) {
        alignas(64) static constexpr uint16_t UPPER[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                           23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                           45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
        const __m512i kept = _mm512_set1_epi32(~0xffff), upper = _mm512_load_si512(UPPER);
        __m512 left = _mm512_loadu_ps(x), right = _mm512_loadu_ps(x + 16);
        for (int part = 0; part < PARTS; part++) {
            const __m512i a = _mm512_and_si512(_mm512_castps_si512(left), kept);
            const __m512i b = _mm512_and_si512(_mm512_castps_si512(right), kept);
            _mm512_store_si512(to + part * TILE, _mm512_permutex2var_epi16(a, upper, b));
            left = _mm512_sub_ps(left, _mm512_castsi512_ps(a));
            right = _mm512_sub_ps(right, _mm512_castsi512_ps(b));
        }
    }

    int rows_ = 0;
    alignas(64) bfloat16 parts_[BLOCK_ROWS / 16 * CHUNKS * PARTS * TILE];
    MatrixTiles tiles_;
};

#endif

// sums + part, or part if `zero_init`
static void add(float* sums, const float* part, int count, bool zero_init) {
    for (int i = 0; i < count; i += LANES)
        store(sums + i, zero_init ? load(part + i) : load(sums + i) + load(part + i));
}

// Store a panel of sums, and their bias if it is not null: the first output at `out`. A gated panel is stored as 16
// values, rounded as a separate activation and product would round.
static void store_panel(element* out, int64_t out_row, const float* sums, int rows, const Weight& weight, int panel) {
    const int outputs = (int)weight.outputs, first = panel * (weight.gated ? WIDTH : PANEL);
    const auto value = [&](int column) {
        const int output = first + column % WIDTH + column / WIDTH * (weight.gated ? outputs / 2 : WIDTH);
        return weight.bias ? load(sums + column) + load(weight.bias + output, outputs - output) : load(sums + column);
    };
    for (int r = 0; r < rows; r++, out += out_row, sums += PANEL)
        if (weight.gated)
            for (int i = 0; i < WIDTH; i += LANES)
                store(out + i, rounded(silu_of(rounded(value(i)))) * rounded(value(WIDTH + i)));
        else
            for (int i = 0; i < PANEL; i += LANES) store(out + i, value(i), outputs - first - i);
}

template <typename W>
void multiply(element* out, const element* x, int64_t rows, const Weight& weight, int threads) {
    using Layout = TileLayout<W>;
    constexpr int CHUNKS = Activations<W>::CHUNKS;
    constexpr bool APART = Activations<W>::APART;
    const W* packed = (const W*)weight.packed;
    const int inputs = (int)weight.inputs, outputs = (int)weight.outputs;
    const int chunks = inputs / Layout::DEPTH, panels = (outputs + PANEL - 1) / PANEL;
    const int64_t out_row = weight.gated ? outputs / 2 : outputs, second = (int64_t)WIDTH * inputs;
    const int blocks = (int)((rows + STREAMED_ROWS - 1) / STREAMED_ROWS);
    const bool few = APART && rows <= FEW;
    // Several groups per thread, for load balance.
    const int most = std::clamp(blocks * panels / (4 * threads), 4, MAX_PANELS);
    const int group = few ? STREAMS : std::clamp(GROUP_BYTES / (PANEL * inputs * (int)sizeof(W)), 1, most);
    const int step = few ? STREAM_CHUNKS : CHUNKS;
    const int groups = (panels + group - 1) / group;
#pragma omp parallel num_threads(thread_count(threads, rows * outputs * inputs))
    {
        Activations<W> activations;
        alignas(64) float sums[MAX_PANELS][BLOCK_ROWS * PANEL], apart[STREAMS][BLOCK_ROWS * PANEL];
        const W* b[CHUNKS];
#pragma omp for schedule(dynamic)
        for (int i = 0; i < blocks * groups; i++) {
            const int first = i / blocks * group, last = std::min(first + group, panels);
            const int64_t begin = (int64_t)(i % blocks) * STREAMED_ROWS;
            const int64_t end = std::min(begin + STREAMED_ROWS, rows);
            for (int64_t row = begin; row < end; row += BLOCK_ROWS) {
                const int row_count = (int)std::min<int64_t>(end - row, BLOCK_ROWS);
                for (int chunk = 0; chunk < chunks; chunk += CHUNKS) {
                    const int deep = std::min(chunks - chunk, CHUNKS);
                    activations.load_rows(x + row * inputs + chunk * Layout::DEPTH, inputs, row_count, deep);
                    for (int c = 0; c < deep; c += step)
                        for (int panel = first; panel < last; panel++) {
                            const int count = std::min(deep - c, step);
                            for (int j = 0; j < count; j++)
                                b[j] = packed + ((int64_t)panel * 2 * chunks + chunk + c + j) * Layout::TILE;
                            float* to = APART ? apart[few ? panel - first : 0] : sums[panel - first];
                            activations.multiply(to, b, second, c, count, APART ? c == 0 : chunk == 0);
                            if (APART && c + count == deep) add(sums[panel - first], to, row_count * PANEL, chunk == 0);
                        }
                }
                for (int panel = first; panel < last; panel++) {
                    element* to = out + row * out_row + panel * (weight.gated ? WIDTH : PANEL);
                    store_panel(to, out_row, sums[panel - first], row_count, weight, panel);
                }
            }
        }
    }
}

// out (rows x outputs; half as many if gated) = x (rows x inputs) W^T + bias
extern "C" void linear(element* out, const element* x, int64_t rows, const Weight* weight, int64_t threads) {
#ifndef BFLOAT16
    if (weight->type == 1) return multiply<bfloat16>(out, x, rows, *weight, (int)threads);
    if (weight->type == 2) return multiply<float16>(out, x, rows, *weight, (int)threads);
#endif
    multiply<element>(out, x, rows, *weight, (int)threads);
}
