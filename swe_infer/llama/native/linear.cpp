// Products of activations with weights, x W^T, accumulated in float.
//
// Weights are packed once, in panels of 32 outputs: all tiles of the first 16, then those of the others. A thread keeps a
// group of panels in its second-level cache and streams rows past it. Few rows are bound by memory: they read two panels
// by turns, since memory is faster in several streams. A gated weight (SwiGLU; Shazeer, 2020) has panels of 16 gates and
// their 16 values, so that one product computes the gated values without storing intermediates.
//
// Float weights that bfloat16 or float16 represents exactly, as in most checkpoints, are packed as such: this halves the
// memory traffic, and AMX can multiply bfloat16. No precision is lost, since activations stay float.
#include "kernels.h"

namespace {

constexpr int PANEL = 2 * WIDTH;
constexpr int GROUP_BYTES = (LANES == 16 ? 512 : 1024) << 10;  // panels that a thread processes together
constexpr int MAX_PANELS = 32;                                // in a group
constexpr int BLOCK_ROWS = LANES == 16 ? MAX_ROWS : 36;        // rows of one product
constexpr int ROWS = 512;                                     // streamed past a panel group
constexpr int STREAMS = 2;                                    // panels that few rows read by turns
constexpr int STREAM_CHUNKS = 2;                              // tiles of one turn
template <typename W>
constexpr int AHEAD = 4 * TileLayout<W>::TILE;                // from the tile that is read to the one prefetched

// A block of rows of activations, in the layout that products with weights of type W read.
template <typename W>
class Activations {
public:
    static constexpr int CHUNKS = 8;      // chunks of the depth, so that the rows stay in the first-level cache
    static constexpr bool APART = false;  // sum each such part of the depth apart

    // Load rows that are `row` elements apart, over the depth of `chunks` tiles.
    void load_rows(const element* x, int row, int rows, int) { x_ = x, row_ = row, rows_ = rows; }

    // C (or 0, if `zero_init`) + the loaded rows, from tile `first` of the depth, times a panel.
    void multiply(float* c, const W* const* b, int64_t second, int first, int chunks, bool zero_init) {
        const W* ahead = Tiles::MATRIX ? nullptr : b[0] + AHEAD<W>;
        tiles_.multiply({c, PANEL, x_ + first * TileLayout<W>::DEPTH, row_, b, second, chunks, zero_init, ahead}, rows_);
    }

private:
    const element* x_ = nullptr;
    int row_ = 0, rows_ = 0;
    Tiles tiles_;
};

#ifndef BFLOAT16

// Floats are copied, since rows that are a power of two apart would evict each other from the cache. Summing parts of
// the depth apart loses less precision.
template <typename W>
class FloatActivations {
public:
    using Layout = TileLayout<W>;
    static constexpr int DEPTH = 128, CHUNKS = DEPTH / Layout::DEPTH;
    static constexpr bool APART = true;

    void load_rows(const float* x, int row, int rows, int chunks) {
        rows_ = rows;
        for (int r = 0; r < rows; r++) memcpy(x_[r], x + (int64_t)r * row, chunks * Layout::DEPTH * sizeof(float));
    }

    void multiply(float* c, const W* const* b, int64_t second, int first, int chunks, bool zero_init) {
        const W* ahead = rows_ < 4 ? nullptr : b[0] + AHEAD<W>;  // fewer rows wait for memory anyway
        const float* x = x_[0] + first * Layout::DEPTH;
        VectorProduct<W>{c, PANEL, x, DEPTH, b, second, chunks, zero_init, ahead}.multiply(rows_);
    }

private:
    int rows_ = 0;
    alignas(64) float x_[BLOCK_ROWS][DEPTH];
};

template <> class Activations<float> : public FloatActivations<float> {};
template <> class Activations<float16> : public FloatActivations<float16> {};
#ifndef __AMX_BF16__
template <> class Activations<bfloat16> : public FloatActivations<bfloat16> {};
#else

// A float has 24 bits of precision and is the sum of three bfloat16 numbers of 8 bits each.
template <>
class Activations<bfloat16> {
public:
    static constexpr int CHUNKS = 4;
    static constexpr bool APART = false;

    void load_rows(const float* x, int row, int rows, int chunks) {
        rows_ = rows;
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < chunks; i++) split(tiles_of(r, i) + r % 16 * DEPTH, x + (int64_t)r * row + i * DEPTH);
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
        alignas(64) static constexpr uint16_t UPPER[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                           33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
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
#endif

// sums + part, or part if `zero_init`
void add(float* sums, const float* part, int count, bool zero_init) {
    for (int i = 0; i < count; i += WIDTH) store(sums + i, zero_init ? load(part + i) : load(sums + i) + load(part + i));
}

// Store `columns` of 32 sums for each row.
void store_panel(element* out, int64_t out_row, const float* sums, int rows, int columns, const element* bias) {
    for (int r = 0; r < rows; r++, out += out_row, sums += PANEL)
        for (int i = 0; i < PANEL && i < columns; i += WIDTH) {
            const Vector x = load(sums + i);
            store(out + i, bias ? x + load(bias + i, columns - i) : x, columns - i);
        }
}

// Store 16 gated values for each row, rounded as a separate activation and product would round.
void store_gated(element* out, int64_t out_row, const float* sums, int rows) {
    for (int r = 0; r < rows; r++, out += out_row, sums += PANEL)
        store(out, rounded(silu_of(rounded(load(sums)))) * rounded(load(sums + WIDTH)));
}

uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// Conversions between float and narrower types. To a narrower type they truncate: see fits.
template <typename To, typename From>
To converted(From x) {
    return x;
}

template <>
bfloat16 converted(float x) {
    return (bfloat16)(bits_of(x) >> 16);
}

template <>
float converted(bfloat16 x) {
    return float_of((uint32_t)x << 16);
}

template <>
float16 converted(float x) {
    const uint32_t size = bits_of(fabsf(x) * 0x1p-112f) >> 13;  // the exponents' biases differ by 112
    return {(uint16_t)((bits_of(x) >> 16 & 0x8000) | (size < 0x7c00 ? size : 0x7c00))};
}

template <>
float converted(float16 x) {
    const float size = float_of((uint32_t)(x.bits & 0x7fff) << 13) * 0x1p112f;
    return x.bits & 0x8000 ? -size : size;
}

template <typename W>
bool fits_as(const element* weight, int64_t count, int threads) {
    int lost = 0;
#pragma omp parallel for num_threads(thread_count(threads, count)) reduction(| : lost)
    for (int64_t i = 0; i < count; i++) lost |= converted<element>(converted<W>(weight[i])) != weight[i];
    return !lost;
}

template <typename W>
void pack_as(W* packed, const element* weight, int outputs, int inputs, int gated, int threads) {
    using Layout = TileLayout<W>;
#pragma omp parallel for num_threads(thread_count(threads, (int64_t)outputs * inputs))
    for (int first = 0; first < outputs; first += PANEL)
        for (int column = 0; column < PANEL; column++) {
            const int output = gated ? first / 2 + column % WIDTH + column / WIDTH * (outputs / 2) : first + column;
            const element* from = weight + (int64_t)output * inputs;
            W* to = packed + (int64_t)(first + column / WIDTH * WIDTH) * inputs;
            for (int d = 0; d < inputs; d++) {
                W& place = to[Layout::offset_of(d, column % WIDTH)];
                place = output < outputs ? converted<W>(from[d]) : W{};
            }
        }
}

template <typename W>
void unpack_as(element* out, const W* packed, const int64_t* ids, int64_t count, int inputs, int threads) {
    using Layout = TileLayout<W>;
#pragma omp parallel for num_threads(thread_count(threads, count * inputs))
    for (int64_t i = 0; i < count; i++) {
        const W* from = packed + ids[i] / WIDTH * WIDTH * inputs;
        for (int d = 0; d < inputs; d++)
            out[i * inputs + d] = converted<element>(from[Layout::offset_of(d, (int)(ids[i] % WIDTH))]);
    }
}

template <typename W>
void multiply(element* out, const element* x, const W* packed, const element* bias, int64_t rows, int outputs, int inputs,
              int gated, int threads) {
    using Layout = TileLayout<W>;
    constexpr int CHUNKS = Activations<W>::CHUNKS;
    constexpr bool APART = Activations<W>::APART;
    const int chunks = inputs / Layout::DEPTH, panels = (outputs + PANEL - 1) / PANEL, wide = gated ? WIDTH : PANEL;
    const int64_t out_row = gated ? outputs / 2 : outputs;
    const int blocks = (int)((rows + ROWS - 1) / ROWS);
    const int even = blocks * panels / (4 * threads);  // several groups per thread, for load balance
    const int most = even < 4 ? 4 : even > MAX_PANELS ? MAX_PANELS : even;
    const bool few = APART && rows <= FEW;
    int group = GROUP_BYTES / (PANEL * inputs * (int)sizeof(W));
    group = few ? STREAMS : group < 1 ? 1 : group > most ? most : group;
    const int step = few ? STREAM_CHUNKS : CHUNKS;
    const int64_t second = (int64_t)WIDTH * inputs;
    const int groups = (panels + group - 1) / group;
#pragma omp parallel num_threads(thread_count(threads, rows * outputs * inputs))
    {
        Activations<W> activations;
        alignas(64) float sums[MAX_PANELS][BLOCK_ROWS * PANEL], apart[STREAMS][BLOCK_ROWS * PANEL];
        const W* b[CHUNKS];
#pragma omp for schedule(dynamic)
        for (int i = 0; i < blocks * groups; i++) {
            const int first = i / blocks * group, last = first + group < panels ? first + group : panels;
            const int64_t begin = (int64_t)(i % blocks) * ROWS, end = begin + ROWS < rows ? begin + ROWS : rows;
            for (int64_t row = begin; row < end; row += BLOCK_ROWS) {
                const int row_count = end - row < BLOCK_ROWS ? (int)(end - row) : BLOCK_ROWS;
                for (int chunk = 0; chunk < chunks; chunk += CHUNKS) {
                    const int deep = chunks - chunk < CHUNKS ? chunks - chunk : CHUNKS;
                    activations.load_rows(x + row * inputs + chunk * Layout::DEPTH, inputs, row_count, deep);
                    for (int c = 0; c < deep; c += step)
                        for (int panel = first; panel < last; panel++) {
                            const int count = deep - c < step ? deep - c : step;
                            for (int j = 0; j < count; j++)
                                b[j] = packed + ((int64_t)panel * 2 * chunks + chunk + c + j) * Layout::TILE;
                            float* to = APART ? apart[few ? panel - first : 0] : sums[panel - first];
                            activations.multiply(to, b, second, c, count, APART ? c == 0 : chunk == 0);
                            if (APART && c + count == deep) add(sums[panel - first], to, row_count * PANEL, chunk == 0);
                        }
                }
                for (int panel = first; panel < last; panel++) {
                    element* to = out + row * out_row + panel * wide;
                    if (gated)
                        store_gated(to, out_row, sums[panel - first], row_count);
                    else
                        store_panel(to, out_row, sums[panel - first], row_count, outputs - panel * PANEL,
                                    bias ? bias + panel * PANEL : nullptr);
                }
            }
        }
    }
}

// How a weight is packed (`type` below): 0 as elements, 1 as bfloat16, 2 as float16.
template <typename F>
void as_type(int type, F f) {
#ifndef BFLOAT16
    if (type == 1) return f(bfloat16{});
    if (type == 2) return f(float16{});
#endif
    f(element{});
}

}  // namespace

// The narrowest type that represents each of `count` elements exactly.
extern "C" int packed_type(const element* weight, int64_t count, int threads) {
#ifndef BFLOAT16
    if (fits_as<bfloat16>(weight, count, threads)) return 1;
    if (fits_as<float16>(weight, count, threads)) return 2;
#endif
    return 0;
}

// Number of elements of a packed weight. `inputs` is a multiple of a tile's depth.
extern "C" int64_t packed_size(int outputs, int inputs) {
    return (int64_t)(outputs + PANEL - 1) / PANEL * PANEL * inputs;
}

// Pack a weight. If `gated`, the first half of `outputs` are gates, and half of them is a multiple of 16.
extern "C" void pack(void* packed, const element* weight, int outputs, int inputs, int gated, int type, int threads) {
    as_type(type, [&](auto w) { pack_as((decltype(w)*)packed, weight, outputs, inputs, gated, threads); });
}

// Unpack rows `ids` of a weight that is not gated.
extern "C" void unpack(element* out, const void* packed, const int64_t* ids, int64_t count, int inputs, int type,
                       int threads) {
    as_type(type, [&](auto w) { unpack_as(out, (const decltype(w)*)packed, ids, count, inputs, threads); });
}

// out (rows x outputs; half as many if gated) = x (rows x inputs) W^T + bias. A gated weight has no bias.
extern "C" void linear(element* out, const element* x, const void* packed, const element* bias, int64_t rows, int outputs,
                       int inputs, int gated, int type, int threads) {
    as_type(type, [&](auto w) {
        multiply(out, x, (const decltype(w)*)packed, bias, rows, outputs, inputs, gated, threads);
    });
}
