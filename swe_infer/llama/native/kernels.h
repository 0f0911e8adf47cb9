// Declarations of the kernels, which Python and layers.cpp call. Each is documented in its own file.
#pragma once

#include "tiles.h"

struct Unit {
    int32_t first_token, tokens, first_segment, segments;
};

// Keys `begin` to `end` of one block table, for `tokens` tokens of the unit starting at `first`.
struct Segment {
    int32_t first, tokens, table, begin, end;
};

// Threads for `work` multiplications: one for little work, since waking and joining threads would take longer.
static inline int thread_count(int threads, int64_t work) {
    constexpr int64_t MIN_WORK = 1 << 18;
    return work < MIN_WORK ? 1 : threads;
}

extern "C" {

void add_rms_norm(element* total, element* out, const element* x, const element* delta, const element* weight, float eps, int64_t rows,
                  int size, int threads);

void rotate(element* out, const element* x, int64_t x_token, const element* cos, const element* sin, int64_t tokens, int heads,
            int head_dim, int threads);

void silu_mul(element* out, const element* gate_up, int64_t rows, int size, int threads);

int64_t packed_size(int outputs, int inputs);

int packed_type(const element* weight, int64_t count, int threads);

void pack(void* packed, const element* weight, int outputs, int inputs, int gated, int type, int threads);

void unpack(element* out, const void* packed, const int64_t* ids, int64_t count, int inputs, int type, int threads);

void linear(element* out, const element* x, const void* packed, const element* bias, int64_t rows, int outputs, int inputs,
            int gated, int type, int threads);

void write_cache(element* keys, element* values, const element* k, int64_t k_token, const element* v, int64_t v_token,
                 const int64_t* places, int count, int kv_heads, int head_dim, int threads);

void attend(element* out, const element* q, int64_t q_token, const element* keys, const element* values, int heads, int kv_heads,
            int head_dim, int window, const Unit* units, int count, const int32_t* tokens, const int32_t* visible,
            const Segment* segments, const int32_t* tables, int threads);
}
