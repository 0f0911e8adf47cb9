// Products of tiles, and helpers shared by the kernels. Elements are bfloat16, or float if FLOAT32 is defined.
//
// A is read in place, row by row. B is stored in tiles that are 16 lines deep and 16 columns wide. A line of floats has
// one element of each column; a line of bfloat16 has a pair: line i has elements 2i and 2i+1 (the order of TDPBF16PS in
// Intel's instruction set reference). Each element of C is summed over the depth in one order, whatever the number of
// rows, so a row's bits never depend on the batch.
//
// B may be bfloat16 while A is float. AMX then reads A as the sum of three bfloat16 matrices, which is exact.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bfloat16;
#ifdef FLOAT32
typedef float element;
#else
typedef bfloat16 element;
#endif

constexpr int WIDTH = 16;     // columns of a tile
constexpr int MAX_ROWS = 32;  // rows of one product

// Memory layout of a tile of T.
template <typename T>
struct TileLayout {
    static constexpr int GRAIN = 4 / sizeof(T);  // adjacent elements of the depth
    static constexpr int DEPTH = 16 * GRAIN;
    static constexpr int TILE = DEPTH * WIDTH;  // elements

    // Offset of an element of the tile.
    static int offset_of(int depth, int column) {
        return depth / GRAIN * GRAIN * WIDTH + column * GRAIN + depth % GRAIN;
    }
};

static inline __mmask16 first_columns(int count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1 << count) - 1);
}

#ifdef FLOAT32

static inline __m512 load(const element* from, __mmask16 mask = 0xffff) {
    return _mm512_maskz_loadu_ps(mask, from);
}

static inline void store(element* to, __m512 x, __mmask16 mask = 0xffff) {
    _mm512_mask_storeu_ps(to, mask, x);
}

// Rounded to the precision of an element.
static inline __m512 rounded(__m512 x) {
    return x;
}

#else

static inline __m512 widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

static inline __m512 load(const element* from, __mmask16 mask = 0xffff) {
    return widen(_mm256_maskz_loadu_epi16(mask, from));
}

static inline void store(element* to, __m512 x, __mmask16 mask = 0xffff) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

// Rounded to the precision of an element.
static inline __m512 rounded(__m512 x) {
    return widen((__m256i)_mm512_cvtneps_pbh(x));
}

#endif

// 2^x for finite x up to 127, within two units in the last place (series of degree 6 around the nearest integer). 0 for
// lanes outside `wanted`.
static inline __m512 exp2_of(__m512 x, __mmask16 wanted = 0xffff) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);
    __m512 sum = _mm512_set1_ps(1.540353039e-4f);
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.333355815e-3f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(9.618129108e-3f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(5.550410866e-2f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(2.402265070e-1f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(6.931471806e-1f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(wanted, sum, whole);
}

// x / (1 + e^-x)
static inline __m512 silu_of(__m512 x) {
    const __m512 e = exp2_of(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

#ifdef __AMX_BF16__

// A matrix for MatrixTiles, with the strides of its tiles of 16 rows, in elements. It is a sum of matrices, its parts.
struct SplitMatrix {
    const bfloat16* first;
    // Strides of rows, of tiles along the depth, of parts, and from the upper to the lower 16 rows.
    int64_t row, chunk, part, lower;
};

// The AMX tile registers of this thread: 0 to 3 are C, 4 and 5 A, 6 and 7 B.
class MatrixTiles {
public:
    // A product of `rows` rows and 32 columns: C (or 0, if `zero_init`) + A B. Tiles of columns 0 to 15 are at `b[i]`,
    // those of columns 16 to 31 are `second` elements after them.
    template <int PARTS>
    void multiply(float* c, int c_row, const SplitMatrix& a, int rows, const bfloat16* const* b, int second, int chunks,
                  bool zero_init) {
        in_memory(a.first);  // GCC's tile loads do not declare that they read memory
        if (rows > 16) {
            configure(16, rows - 16);
            product<PARTS, true>(c, c_row, a, b, second, chunks, zero_init);
        } else {
            configure(rows, 16);
            product<PARTS, false>(c, c_row, a, b, second, chunks, zero_init);
        }
    }

    ~MatrixTiles() {
        if (upper_) _tile_release();
    }

private:
    // TALL: more than 16 rows.
    template <int PARTS, bool TALL>
    static void product(float* c, int c_row, const SplitMatrix& a, const bfloat16* const* b, int second, int chunks,
                        bool zero_init) {
        float* low = c + 16 * c_row;
        if (zero_init) {
            _tile_zero(0);
            _tile_zero(1);
            if (TALL) _tile_zero(2);
            if (TALL) _tile_zero(3);
        } else {
            _tile_loadd(0, c, 4 * c_row);
            _tile_loadd(1, c + WIDTH, 4 * c_row);
            if (TALL) _tile_loadd(2, low, 4 * c_row);
            if (TALL) _tile_loadd(3, low + WIDTH, 4 * c_row);
        }
        for (int i = 0; i < chunks; i++) {
            _tile_loadd(6, b[i], 64);
            _tile_loadd(7, b[i] + second, 64);
            for (int p = 0; p < PARTS; p++) {
                const bfloat16* upper = a.first + i * a.chunk + p * a.part;
                _tile_loadd(4, upper, 2 * a.row);
                if (TALL) _tile_loadd(5, upper + a.lower, 2 * a.row);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                if (TALL) _tile_dpbf16ps(2, 5, 6);
                if (TALL) _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, c, 4 * c_row);
        _tile_stored(1, c + WIDTH, 4 * c_row);
        if (TALL) _tile_stored(2, low, 4 * c_row);
        if (TALL) _tile_stored(3, low + WIDTH, 4 * c_row);
    }

    void configure(int upper, int lower) {
        if (upper == upper_ && lower == lower_) return;
        upper_ = upper, lower_ = lower;
        struct {
            uint8_t palette, start, reserved[14];
            uint16_t bytes[16];
            uint8_t rows[16];
        } layout;
        memset(&layout, 0, sizeof layout);
        layout.palette = 1;
        const int rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
        for (int i = 0; i < 8; i++) layout.bytes[i] = 64, layout.rows[i] = (uint8_t)rows[i];
        in_memory(&layout);
        _tile_loadconfig(&layout);
    }

    static void in_memory(const void* what) { __asm__ volatile("" ::"r"(what) : "memory"); }

    int upper_ = 0, lower_ = 0;
};

#endif

// 16 sums += A B over a line of B. The elements at `a` are broadcast to all lanes.
#ifdef FLOAT32
static inline __m512 accumulated(__m512 sum, const float* a, const float* line) {
    return _mm512_fmadd_ps(_mm512_set1_ps(*a), _mm512_loadu_ps(line), sum);
}

static inline __m512 accumulated(__m512 sum, const float* a, const bfloat16* line) {
    const __m512i pairs = _mm512_loadu_si512(line);
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff)));
    return _mm512_fmadd_ps(_mm512_set1_ps(a[1]), odd, _mm512_fmadd_ps(_mm512_set1_ps(a[0]), even, sum));
}
#else
static inline __m512 accumulated(__m512 sum, const bfloat16* a, const bfloat16* line) {
    int32_t pair;
    memcpy(&pair, a, sizeof pair);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(line));
}
#endif

// Products with AVX-512.
class VectorTiles {
public:
    // As MatrixTiles::multiply, for one matrix of elements and tiles of T.
    template <typename T>
    void multiply(float* c, int c_row, const element* a, int a_row, int rows, const T* const* b, int second, int chunks,
                  bool zero_init) {
        for (; rows >= 8; rows -= 8, c += 8 * c_row, a += 8 * a_row)
            multiply_rows<8>(c, c_row, a, a_row, b, second, chunks, zero_init);
        if (rows & 4) multiply_rows<4>(c, c_row, a, a_row, b, second, chunks, zero_init), c += 4 * c_row, a += 4 * a_row;
        if (rows & 2) multiply_rows<2>(c, c_row, a, a_row, b, second, chunks, zero_init), c += 2 * c_row, a += 2 * a_row;
        if (rows & 1) multiply_rows<1>(c, c_row, a, a_row, b, second, chunks, zero_init);
    }

private:
    template <int ROWS, typename T>
    static void multiply_rows(float* c, int c_row, const element* a, int a_row, const T* const* b, int second, int chunks,
                     bool zero_init) {
        using Layout = TileLayout<T>;
        __m512 sums[ROWS][2];
        for (int r = 0; r < ROWS; r++)
            for (int half = 0; half < 2; half++)
                sums[r][half] = zero_init ? _mm512_setzero_ps() : _mm512_loadu_ps(c + r * c_row + half * WIDTH);
        for (int i = 0; i < chunks; i++)
            for (int depth = 0; depth < Layout::DEPTH; depth += Layout::GRAIN) {
                const T* line = b[i] + Layout::offset_of(depth, 0);
                _mm_prefetch((const char*)(line + 2 * Layout::TILE), _MM_HINT_T0);  // few rows are memory-bound
                _mm_prefetch((const char*)(line + second + 2 * Layout::TILE), _MM_HINT_T0);
                for (int r = 0; r < ROWS; r++) {
                    const element* from = a + r * a_row + i * Layout::DEPTH + depth;
                    sums[r][0] = accumulated(sums[r][0], from, line);
                    sums[r][1] = accumulated(sums[r][1], from, line + second);
                }
            }
        for (int r = 0; r < ROWS; r++)
            for (int half = 0; half < 2; half++) _mm512_storeu_ps(c + r * c_row + half * WIDTH, sums[r][half]);
    }
};

// Products of elements with tiles of elements.
#if defined(__AMX_BF16__) && !defined(FLOAT32)
class Tiles {
public:
    void multiply(float* c, int c_row, const element* a, int a_row, int rows, const element* const* b, int second,
                  int chunks, bool zero_init) {
        tiles_.multiply<1>(c, c_row, {a, a_row, DEPTH, 0, 16 * a_row}, rows, b, second, chunks, zero_init);
    }

private:
    static constexpr int DEPTH = TileLayout<element>::DEPTH;

    MatrixTiles tiles_;
};
#else
using Tiles = VectorTiles;
#endif
