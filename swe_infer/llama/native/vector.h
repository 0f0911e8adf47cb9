// Vectors of 16 floats, in the registers of the processor: one with AVX-512, two with AVX2, four with NEON. Written with
// the vector extensions of GCC and Clang, so that one source serves all three. Only the fused multiply-add and the
// conversion of float16 have no portable form. All operations are exact or rounded once and sums have one order, so
// results in float32 are the same bits on every processor.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef LANES  // floats in a register; tests also compile 16 for processors with AVX2
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bfloat16;
struct float16 {
    uint16_t bits;
};
#ifdef BFLOAT16
typedef bfloat16 element;
#else
typedef float element;
#endif

constexpr int WIDTH = 16;
constexpr int PARTS = WIDTH / LANES;

typedef float Part __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float UnalignedPart __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t UnalignedBits __attribute__((vector_size(4 * LANES), aligned(2), may_alias));

struct Vector {
    Part part[PARTS];
};

// A vector with parts f(0), f(1), ...
template <typename F>
INLINE Vector parts(F f) {
    Vector made;
    for (int i = 0; i < PARTS; i++) made.part[i] = (Part)f(i);
    return made;
}

INLINE Vector splat(float x) {
    return parts([&](int) { return x - Part{}; });  // minus 0 keeps the sign of x
}

INLINE Vector operator+(const Vector& a, const Vector& b) {
    return parts([&](int i) { return a.part[i] + b.part[i]; });
}

INLINE Vector operator-(const Vector& a, const Vector& b) {
    return parts([&](int i) { return a.part[i] - b.part[i]; });
}

INLINE Vector operator*(const Vector& a, const Vector& b) {
    return parts([&](int i) { return a.part[i] * b.part[i]; });
}

INLINE Vector operator/(const Vector& a, const Vector& b) {
    return parts([&](int i) { return a.part[i] / b.part[i]; });
}

// The larger number of each lane; `b` if one is not a number.
INLINE Vector larger(const Vector& a, const Vector& b) {
    return parts([&](int i) { return a.part[i] > b.part[i] ? a.part[i] : b.part[i]; });
}

// a b + c, rounded once
INLINE Part fused(Part a, Part b, Part c) {
#if LANES == 16 && defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif LANES == 8 && defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif LANES == 4 && defined(__aarch64__)
    return (Part)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

INLINE Vector fused(const Vector& a, const Vector& b, const Vector& c) {
    return parts([&](int i) { return fused(a.part[i], b.part[i], c.part[i]); });
}

// x in lanes `first` to `end`, `other` in the rest
INLINE Vector masked(const Vector& x, int first, int end, float other) {
    Ints lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    const Vector rest = splat(other);
    return parts([&](int i) {
        const Ints inside = (lane >= first - i * LANES) & (lane < end - i * LANES);
        return (inside & (Ints)x.part[i]) | (~inside & (Ints)rest.part[i]);
    });
}

// Reduces the lanes in halves: 8 pairs, 4 pairs, and so on.
template <typename F>
INLINE float reduced(const Vector& x, F f) {
    float lanes[WIDTH];
    memcpy(lanes, &x, sizeof lanes);
    for (int step = WIDTH / 2; step; step /= 2)
        for (int i = 0; i < step; i++) lanes[i] = f(lanes[i], lanes[i + step]);
    return lanes[0];
}

INLINE float sum_of(const Vector& x) {
    return reduced(x, [](float a, float b) { return a + b; });
}

INLINE float largest(const Vector& x) {
    return reduced(x, [](float a, float b) { return a > b ? a : b; });
}

INLINE Part load_part(const float* from) {
    return *(const UnalignedPart*)from;
}

INLINE Part load_part(const float16* from) {
#if LANES == 16 && defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif LANES == 4 && defined(__aarch64__)
    return (Part)vcvt_f32_f16(vld1_f16((const float16_t*)from));
#elif defined(__F16C__)
    Part made;
    for (int i = 0; i < LANES; i += 8) {
        const __m256 eight = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i)));
        memcpy((char*)&made + 4 * i, &eight, sizeof eight);
    }
    return made;
#endif
}

INLINE Vector load(const float* from) {
    return parts([&](int i) { return load_part(from + i * LANES); });
}

INLINE void store(float* to, const Vector& x) {
    for (int i = 0; i < PARTS; i++) *(UnalignedPart*)(to + i * LANES) = x.part[i];
}

#ifdef BFLOAT16  // only with AVX-512 BF16

INLINE Vector widened(__m256i x) {
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))}};
}

INLINE Vector load(const bfloat16* from) {
    return widened(_mm256_loadu_si256((const __m256i*)from));
}

INLINE void store(bfloat16* to, const Vector& x) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x.part[0]));
}

// Rounded to the precision of an element.
INLINE Vector rounded(const Vector& x) {
    return widened((__m256i)_mm512_cvtneps_pbh(x.part[0]));
}

#else

INLINE Vector rounded(const Vector& x) {
    return x;
}

#endif

// The first `count` of 16 elements, then zeros.
INLINE Vector load(const element* from, int count) {
    if (count >= WIDTH) return load(from);
    element all[WIDTH] = {};
    if (count > 0) memcpy(all, from, count * sizeof(element));
    return load(all);
}

INLINE void store(element* to, const Vector& x, int count) {
    if (count >= WIDTH) return store(to, x);
    element all[WIDTH];
    store(all, x);
    if (count > 0) memcpy(to, all, count * sizeof(element));
}

// 2^x for x from -125 to 126, within two units in the last place (series of degree 6 around the nearest integer).
INLINE Vector exp2_of(const Vector& x) {
    const Vector shift = splat(12582912.0f);  // 1.5 * 2^23: the last bits of the sum are the nearest integer
    const Vector shifted = x + shift, part = x - (shifted - shift);
    constexpr float FACTORS[] = {1.333355815e-3f, 9.618129108e-3f, 5.550410866e-2f, 2.402265070e-1f, 6.931471806e-1f, 1};
    Vector sum = splat(1.540353039e-4f);
    for (float factor : FACTORS) sum = fused(sum, part, splat(factor));
    return parts([&](int i) { return (Bits)sum.part[i] + ((Bits)shifted.part[i] << 23); });
}

// x / (1 + e^-x); below -87 the result is that of -87, about -1e-36
INLINE Vector silu_of(const Vector& x) {
    const Vector bounded = larger(splat(-87.0f), x);
    const Vector e = exp2_of(larger(bounded * splat(-1.44269504f), splat(-125.0f)));
    return bounded / (splat(1.0f) + e);
}
