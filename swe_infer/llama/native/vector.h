// Vectors of LANES floats, a register of the processor: 16 with AVX-512, 8 with AVX2, 4 with NEON. Written with the
// vector extensions of GCC and Clang, whose operators are those of C++, so that one source serves all three. Only the
// fused multiply-add and the 16-bit types have no portable form. All operations are exact or rounded once, and sums run
// over 16 lanes in one order, so results in float32 are the same bits on every processor.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef LANES  // tests also compile 16 for processors with AVX2
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

#define INLINE static inline __attribute__((always_inline))
// Before loops over registers: unrolled later, GCC would keep them in memory.
#define UNROLL _Pragma("GCC unroll 16")

typedef uint16_t bfloat16;
struct float16 {
    uint16_t bits;
};
#ifdef BFLOAT16
typedef bfloat16 element;
#else
typedef float element;
#endif

constexpr int WIDTH = 16;             // columns of a tile, lanes of a sum
constexpr int PARTS = WIDTH / LANES;  // vectors in them

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float UnalignedVector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t UnalignedBits __attribute__((vector_size(4 * LANES), aligned(2), may_alias));

INLINE Vector splat(float x) {
    return x - Vector{};  // minus 0 keeps the sign of x
}

// The larger number of each lane; `b` if one is not a number.
INLINE Vector larger(Vector a, Vector b) {
    return a > b ? a : b;
}

// a b + c, rounded once
INLINE Vector fused(Vector a, Vector b, Vector c) {
#if LANES == 16 && defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif LANES == 8 && defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif LANES == 4 && defined(__aarch64__)
    return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

// x in lanes `first` to `end`, `other` in the rest
INLINE Vector masked(Vector x, int first, int end, float other) {
    Ints lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return ((lane >= first) & (lane < end)) ? x : splat(other);
}

// Reduces 16 lanes in halves: 8 pairs, 4 pairs, and so on.
template <typename F>
INLINE float reduced(const Vector (&x)[PARTS], F f) {
    float lanes[WIDTH];
    memcpy(lanes, x, sizeof lanes);
    for (int step = WIDTH / 2; step; step /= 2)
        for (int i = 0; i < step; i++) lanes[i] = f(lanes[i], lanes[i + step]);
    return lanes[0];
}

INLINE float sum_of(const Vector (&x)[PARTS]) {
    return reduced(x, [](float a, float b) { return a + b; });
}

INLINE Vector load(const float* from) {
    return *(const UnalignedVector*)from;
}

INLINE Vector load(const float16* from) {
#if LANES == 16 && defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif LANES == 4 && defined(__aarch64__)
    return (Vector)vcvt_f32_f16(vld1_f16((const float16_t*)from));
#elif defined(__F16C__)
    Vector made;
    for (int i = 0; i < LANES; i += 8) {
        const __m256 eight = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i)));
        memcpy((char*)&made + 4 * i, &eight, sizeof eight);
    }
    return made;
#endif
}

INLINE void store(float* to, Vector x) {
    *(UnalignedVector*)to = x;
}

#ifdef BFLOAT16  // only with AVX-512 BF16

INLINE Vector load(const bfloat16* from) {
    return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
}

INLINE void store(bfloat16* to, Vector x) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x));
}

#endif

// Rounded to the precision of an element.
INLINE Vector rounded(Vector x) {
    if (sizeof(element) == sizeof(float)) return x;
    element narrow[LANES];
    store(narrow, x);
    return load(narrow);
}

// The first `count` of LANES elements, then zeros.
INLINE Vector load(const element* from, int count) {
    if (count >= LANES) return load(from);
    element all[LANES] = {};
    if (count > 0) memcpy(all, from, count * sizeof(element));
    return load(all);
}

INLINE void store(element* to, Vector x, int count) {
    if (count >= LANES) return store(to, x);
    element all[LANES];
    store(all, x);
    if (count > 0) memcpy(to, all, count * sizeof(element));
}

// 2^x for x up to 126, within two units in the last place (series of degree 6 around the nearest integer). Below -125
// the result is that of -125: denormal results are about a hundred times slower. NaN stays NaN.
INLINE Vector exp2_of(Vector x) {
    x = larger(splat(-125.0f), x);
    const Vector shifted = x + 12582912.0f;  // 1.5 * 2^23: the last bits of the sum are the nearest integer
    const Vector part = x - (shifted - 12582912.0f);
    constexpr float FACTORS[] = {1.333355815e-3f, 9.618129108e-3f, 5.550410866e-2f,
                                 2.402265070e-1f, 6.931471806e-1f, 1};
    Vector sum = splat(1.540353039e-4f);
    for (float factor : FACTORS) sum = fused(sum, part, splat(factor));
    return (Vector)((Bits)sum + ((Bits)shifted << 23));
}

// x / (1 + e^-x); below -87 the result is that of -87, about -1e-36
INLINE Vector silu_of(Vector x) {
    const Vector bounded = larger(splat(-87.0f), x);
    return bounded / (1.0f + exp2_of(bounded * -1.44269504f));
}
