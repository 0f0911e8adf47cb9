// Products of tiles. Elements are float, or bfloat16 if BFLOAT16 is defined.
//
// A is read in place, row by row. B is stored in tiles of 16 columns. A tile of floats or float16 is 16 lines deep, and a
// line has one element of each column. A tile of bfloat16 is 32 deep, and a line has a pair: line i has elements 2i and
// 2i+1 (the order of TDPBF16PS in Intel's instruction set reference). Each element of C is summed over the depth in one
// order for any number of rows, so a row's bits never depend on the batch.
//
// B may be bfloat16 or float16 while A is float. AMX then reads A as the sum of three bfloat16 matrices, which is exact.
#pragma once

#include "vector.h"

constexpr int MAX_ROWS = 32;  // rows of one product

template <typename T>
constexpr int GRAIN_OF = 1;
template <>
constexpr int GRAIN_OF<bfloat16> = 2;

// Memory layout of a tile of T.
template <typename T>
struct TileLayout {
    static constexpr int GRAIN = GRAIN_OF<T>;  // adjacent elements of the depth
    static constexpr int DEPTH = 16 * GRAIN;
    static constexpr int TILE = DEPTH * WIDTH;  // elements

    // Offset of an element of the tile.
    static int offset_of(int depth, int column) {
        return depth / GRAIN * GRAIN * WIDTH + column * GRAIN + depth % GRAIN;
    }
};

#ifdef __AMX_BF16__
#include "amx.h"
#endif

// Sums of some columns + A B over step `step` of a line of B. The elements at `a` are broadcast.
#ifdef BFLOAT16
INLINE Part accumulated(Part sums, const bfloat16* a, const bfloat16* line, int) {
    int32_t pair;
    memcpy(&pair, a, sizeof pair);
    return _mm512_dpbf16_ps(sums, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(line));
}
#else
template <typename T>
INLINE Part accumulated(Part sums, const float* a, const T* line, int) {
    return fused(*a - Part{}, load_part(line), sums);
}

INLINE Part accumulated(Part sums, const float* a, const bfloat16* line, int step) {
    const Bits pairs = *(const UnalignedBits*)line;
    return fused(a[step] - Part{}, (Part)(step ? pairs & 0xffff0000u : pairs << 16), sums);
}
#endif

// A product of `rows` rows and 32 columns with vectors: C (or 0, if `zero_init`) + A B. Tiles of columns 0 to 15 are at
// `b[i]`, those of columns 16 to 31 are `second` elements after them.
template <typename T>
struct VectorProduct {
    float* c;
    int c_row;
    const element* a;
    int a_row;
    const T* const* b;
    int second, chunks;
    bool zero_init;

    // `halves`: 1 for columns 0 to 15 alone.
    void multiply(int rows, int halves = 2) const {
        int row = 0;
        for (; rows - row >= TALL; row += TALL) panel<TALL>(row, halves);
        rest<TALL - 1>(row, rows - row, halves);
    }

private:
    static constexpr int TALL = LANES == 16 ? 8 : 6;  // rows whose sums stay in registers

    template <int ROWS>
    void rest(int row, int rows, int halves) const {
        if constexpr (ROWS > 0) {
            if (rows == ROWS)
                panel<ROWS>(row, halves);
            else
                rest<ROWS - 1>(row, rows, halves);
        }
    }

    template <int ROWS>
    void panel(int row, int halves) const {
        if ((LANES == 16 || ROWS <= 3) && halves == 2)
            block<ROWS, LANES == 16 || ROWS <= 3 ? 2 : 1>(row, 0);
        else
            for (int half = 0; half < halves; half++) block<ROWS, 1>(row, half);
    }

    template <int ROWS, int COLUMNS>
    void block(int row, int half) const {
        using Layout = TileLayout<T>;
        constexpr int STEPS = sizeof(element) == sizeof(float) ? Layout::GRAIN : 1;
        constexpr bool APART = STEPS == Layout::GRAIN;  // floats: summing each call's depth apart loses less precision
        float* to = c + row * c_row + half * WIDTH;
        Part sums[ROWS][COLUMNS * PARTS];
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < COLUMNS * PARTS; j++)
                sums[r][j] = zero_init || APART ? Part{} : load_part(to + r * c_row + j * LANES);
        for (int i = 0; i < chunks; i++)
            for (int depth = 0; depth < Layout::DEPTH; depth += Layout::GRAIN) {
                const T* line = b[i] + half * second + depth * WIDTH;
                for (int j = 0; j < COLUMNS; j++) __builtin_prefetch(line + j * second + 4 * Layout::TILE);
                for (int step = 0; step < STEPS; step++)  // one converted line at a time leaves registers for sums
                    for (int r = 0; r < ROWS; r++)
                        for (int j = 0; j < COLUMNS * PARTS; j++)
                            sums[r][j] = accumulated(sums[r][j], a + (row + r) * a_row + i * Layout::DEPTH + depth,
                                                     line + j / PARTS * second + j % PARTS * LANES * Layout::GRAIN, step);
            }
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < COLUMNS * PARTS; j++) {
                float* place = to + r * c_row + j * LANES;
                *(UnalignedPart*)place = zero_init || !APART ? sums[r][j] : load_part(place) + sums[r][j];
            }
    }
};

// Products of elements with tiles of elements.
#if defined(__AMX_BF16__) && defined(BFLOAT16)
class Tiles {
public:
    // The last argument is always 2: the head dimension is a multiple of 32.
    void multiply(float* c, int c_row, const element* a, int a_row, int rows, const element* const* b, int second,
                  int chunks, bool zero_init, int /* halves */ = 2) {
        matrix_.multiply<1>(c, c_row, {a, a_row, TileLayout<element>::DEPTH, 0, 16 * a_row}, rows, b, second, chunks,
                            zero_init);
    }

private:
    MatrixTiles matrix_;
};
#else
struct Tiles {
    void multiply(float* c, int c_row, const element* a, int a_row, int rows, const element* const* b, int second,
                  int chunks, bool zero_init, int halves = 2) {
        VectorProduct<element>{c, c_row, a, a_row, b, second, chunks, zero_init}.multiply(rows, halves);
    }
};
#endif
