// The kernels, which Python calls one by one and layers.cpp in their order. See each one's own file.
#pragma once

#include "tiles.h"

struct Unit {
    int32_t first_token, tokens, first_segment, segments;
};

// Keys `begin` to `end` of one block table, for `tokens` tokens of the unit from `first`.
struct Segment {
    int32_t first, tokens, table, begin, end;
};

extern "C" {

void add_rms_norm(bf16* total, bf16* out, const bf16* x, const bf16* delta, const bf16* weight, float eps, int64_t rows,
                  int size, int threads);

void rotate(bf16* out, const bf16* x, int64_t x_token, const bf16* cos, const bf16* sin, int64_t tokens, int heads,
            int head_dim, int threads);

void silu_mul(bf16* out, const bf16* gate_up, int64_t rows, int size, int threads);

int64_t packed_size(int outputs, int inputs);

void pack(bf16* packed, const bf16* weight, int outputs, int inputs, int gated, int threads);

void unpack(bf16* out, const bf16* packed, const int64_t* ids, int64_t count, int inputs, int threads);

void linear(bf16* out, const bf16* x, const bf16* packed, const bf16* bias, int64_t rows, int outputs, int inputs,
            int gated, int threads);

void write_cache(bf16* keys, bf16* values, const bf16* k, int64_t k_token, const bf16* v, int64_t v_token,
                 const int64_t* places, int count, int kv_heads, int head_dim, int threads);

void attend(bf16* out, const bf16* q, int64_t q_token, const bf16* keys, const bf16* values, int heads, int kv_heads,
            int head_dim, const Unit* units, int count, const int32_t* tokens, const int32_t* visible,
            const Segment* segments, const int32_t* tables, int threads);
}
