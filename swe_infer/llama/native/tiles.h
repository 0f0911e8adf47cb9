// Products of tiles. Elements are float, or bfloat16 if BFLOAT16 is defined.
//
// A is read in place, row by row. B is stored in tiles of 16 columns. A tile of floats or float16 is 16 lines deep, and
// a line has one element of each column. A tile of bfloat16 is 32 deep, and a line has a pair: line i has elements 2i
// and 2i+1 (the order of TDPBF16PS in Intel's instruction set reference). Each element of C is summed over the depth in
// one order for any number of rows, so a row's bits never depend on the batch.
//
// B may be bfloat16 or float16 while A is float. AMX then reads A as the sum of three bfloat16 matrices, which is
// exact.
#pragma once

#include <algorithm>
#include <type_traits>

#include "vector.h"

#ifdef __AMX_BF16__
#include "amx.h"
#endif

constexpr int MAX_ROWS = 32;  // rows of one product
constexpr int FEW = 16;       // a product of up to this number is bound by memory

// Memory layout of a tile of T.
template <typename T>
struct TileLayout {
    static constexpr int GRAIN = std::is_same_v<T, bfloat16> ? 2 : 1;  // adjacent elements of the depth
    static constexpr int DEPTH = 16 * GRAIN;
    static constexpr int TILE = DEPTH * WIDTH;  // elements

    // Offset of an element of the tile, or of those that follow it for more depth.
    static int64_t offset_of(int depth, int column) {
        return (int64_t)depth / GRAIN * GRAIN * WIDTH + column * GRAIN + depth % GRAIN;
    }
};

// Threads for `work` multiplications: one for little work, since waking and joining threads would take longer.
INLINE int thread_count(int64_t threads, int64_t work) {
    constexpr int64_t MIN_WORK = 1 << 18;
    return work < MIN_WORK ? 1 : (int)threads;
}

#ifdef BFLOAT16
INLINE void accumulate(Vector& sum, Vector pair, Vector line) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)pair, (__m512bh)line);
}

INLINE Vector value(const bfloat16* x, int) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return (Vector)_mm512_set1_epi32(pair);
}

INLINE Vector line_part(const bfloat16* line, int) {
    return (Vector) * (const UnalignedBits*)line;
}
#else
// sum += a b. Spelled out, since GCC would move the sums of a product through memory.
INLINE void accumulate(Vector& sum, Vector a, Vector b) {
#if LANES == 8 && defined(__FMA__) || LANES == 16 && defined(__AVX512F__)
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
    sum = fused(a, b, sum);
#endif
}

INLINE Vector value(const float* x, int step) {
    return splat(x[step]);
}

// Element `step` of the depth in a line.
template <typename T>
INLINE Vector line_part(const T* line, int) {
    return load(line);
}

INLINE Vector line_part(const bfloat16* line, int step) {
    const Bits pairs = *(const UnalignedBits*)line;
    return (Vector)(step ? pairs & 0xffff0000u : pairs << 16);
}
#endif

// A product of `rows` rows and 32 columns with vectors: C (or 0, if `zero_init`) + A B. Tiles of columns 0 to 15 are at
// `b[i]`, those of columns 16 to 31 are `second` elements after them; without them if it is 0.
template <typename T>
struct VectorProduct {
    float* c;
    int c_row;
    const element* a;
    int a_row;
    const T* const* b;
    int64_t second;
    int chunks;
    bool zero_init;
    const T* ahead;  // if not null, prefetches as many lines as it reads, from here

    static constexpr int TALL = LANES == 16 ? 8 : 6;  // rows whose sums stay in registers

    template <int ROWS = TALL>
    void multiply(int rows, int row = 0) const {
        for (; rows - row >= ROWS; row += ROWS) panel<ROWS>(row);
        if constexpr (ROWS > 1) multiply<ROWS - 1>(rows, row);
    }

private:
    using Layout = TileLayout<T>;
    static constexpr int STEPS = sizeof(element) == sizeof(float) ? Layout::GRAIN : 1;  // or pairs

    template <int ROWS>
    void panel(int row) const {
        constexpr bool WIDE = LANES == 16 || ROWS <= 2;  // the sums of both halves fit in registers
        if (WIDE && second) return block<ROWS, WIDE ? 2 * PARTS : PARTS>(row, 0);
        for (int half = 0; half < (second ? 2 : 1); half++) block<ROWS, PARTS>(row, half);
    }

    // VECTORS: registers of columns.
    template <int ROWS, int VECTORS>
    void block(int row, int half) const {
        const auto place = [&](int r, int j) { return c + (row + r) * c_row + half * WIDTH + j * LANES; };
        Vector sums[ROWS][VECTORS];
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int j = 0; j < VECTORS; j++) sums[r][j] = zero_init ? Vector{} : load(place(r, j));
        for (int i = 0; i < chunks; i++)
            for (int depth = 0; depth < Layout::DEPTH; depth += Layout::GRAIN) {
                const T* line = b[i] + half * second + depth * WIDTH;
                const element* x = a + row * a_row + i * Layout::DEPTH + depth;
                for (int j = 0; ahead && j < VECTORS; j += PARTS)
                    __builtin_prefetch(ahead + i * Layout::TILE + depth * WIDTH + (half + j / PARTS) * second);
                UNROLL for (int step = 0; step < STEPS; step++) {
                    Vector columns[VECTORS];
                    UNROLL for (int j = 0; j < VECTORS; j++)
                        columns[j] = line_part(line + j / PARTS * second + j % PARTS * LANES * Layout::GRAIN, step);
                    UNROLL for (int r = 0; r < ROWS; r++) {
                        const Vector broadcast = value(x + r * a_row, step);
                        UNROLL for (int j = 0; j < VECTORS; j++) accumulate(sums[r][j], broadcast, columns[j]);
                    }
                }
            }
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int j = 0; j < VECTORS; j++) store(place(r, j), sums[r][j]);
    }
};

// Products of elements with tiles of elements, by this thread.
struct Tiles {
#if defined(__AMX_BF16__) && defined(BFLOAT16)
    static constexpr bool MATRIX = true;  // always 32 columns, and prefetches nothing
    MatrixTiles matrix;

    void multiply(const VectorProduct<element>& p, int rows) {
        matrix.multiply<1>(p.c, p.c_row, {p.a, p.a_row, TileLayout<element>::DEPTH, 0, 16 * p.a_row}, rows, p.b,
                           p.second, p.chunks, p.zero_init);
    }
#else
    static constexpr bool MATRIX = false;

    template <typename T>
    void multiply(const VectorProduct<T>& product, int rows) {
        product.multiply(rows);
    }
#endif
};
