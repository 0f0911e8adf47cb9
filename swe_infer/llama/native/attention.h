// Causal grouped-query attention over a paged cache (Kwon et al., 2023) with an online softmax (Dao, 2023).
//
// A block of the cache has 32 tokens. The keys of one head in it are stored as the tiles of a product Q K^T, its values
// as those of P V, so that products read the cache in place. Softmax processes KEY_PANEL keys at a time, counted from
// the start of the sequence, so a row's result depends only on its own sequence, bit for bit.
#pragma once

#include "tiles.h"

using Layout = TileLayout<element>;
using Product = VectorProduct<element>;
constexpr int GRAIN = Layout::GRAIN, DEPTH = Layout::DEPTH, TILE = Layout::TILE;
constexpr int BLOCK = 32;
constexpr int KEY_PANEL = 128;  // whose softmax weights are computed together
constexpr int MAX_HEAD_DIM = 256;

struct Unit {
    int32_t first_token, tokens, first_segment, segments;
};

// Keys `begin` to `end` of one block table, for `tokens` tokens of the unit starting at `first`.
struct Segment {
    int32_t first, tokens, table, begin, end;
};

// As Units of kernels.py.
struct Work {
    const Unit* units;
    int64_t count;
    const int32_t *tokens, *visible;
    const Segment* segments;
    const int32_t* tables;
};

// `q` has `q_token` elements between tokens; out (T H D) is contiguous. Each row sees its last `window` keys.
struct Attention {
    element* out;
    const element* q;
    int64_t q_token;
    const element *keys, *values;
    int64_t heads, kv_heads, head_dim, window;
    Work work;
};

struct State {
    alignas(64) element q[MAX_ROWS * MAX_HEAD_DIM];
    alignas(64) float scores[MAX_ROWS * KEY_PANEL];
    alignas(64) element weights[MAX_ROWS * KEY_PANEL];
    alignas(64) float sums[MAX_ROWS * MAX_HEAD_DIM], part[MAX_ROWS * 2 * WIDTH];
    float top[MAX_ROWS], total[MAX_ROWS];
};

INLINE bool is_finite(element x) {
    return sizeof x == sizeof(float) ? x - x == 0 : ((int)x & 0x7f80) != 0x7f80;
}

// Softmax weights of one row over a panel of which it sees the keys `first` to `end`: 2^(score * scale), with a running
// maximum and sum over the panels. Masked keys have weight 0.
static void softmax(State& state, int row, int first, int end, float scale, int head_dim) {
    element* weights = state.weights + row * KEY_PANEL;
    if (end <= 0 || first >= KEY_PANEL) {
        memset(weights, 0, KEY_PANEL * sizeof(element));
        return;
    }
    const float* scores = state.scores + row * KEY_PANEL;
    const bool all = first <= 0 && end >= KEY_PANEL;
    const auto seen = [&](Vector x, int i, float other) { return all ? x : masked(x, first - i, end - i, other); };
    Vector most[PARTS], total[PARTS] = {};
    for (Vector& part : most) part = splat(-INFINITY);
    for (int i = 0; i < KEY_PANEL; i += WIDTH)
        for (int j = 0; j < PARTS; j++)
            most[j] = larger(most[j], seen(load(scores + i + j * LANES), i + j * LANES, -INFINITY));
    const float before = state.top[row],
                top = fmaxf(before, reduced(most, [](float a, float b) { return a > b ? a : b; }));
    const Vector factor = splat(scale), shift = splat(-top * scale);
    for (int i = 0; i < KEY_PANEL; i += WIDTH)
        for (int j = 0; j < PARTS; j++) {
            const int key = i + j * LANES;
            const Vector weight = seen(exp2_of(fused(load(scores + key), factor, shift)), key, 0);
            total[j] = total[j] + weight;
            store(weights + key, weight);
        }
    if (top != before) {
        const Vector shrink = exp2_of(splat((before - top) * scale));
        float* sums = state.sums + row * head_dim;
        for (int d = 0; d < head_dim; d += LANES) store(sums + d, load(sums + d) * shrink);
        state.total[row] *= shrink[0];
        state.top[row] = top;
    }
    state.total[row] += sum_of(total);
}

// Rows `first` to `first + rows` of a unit, over the keys of one segment.
static void attend_segment(State& state, Tiles& tiles, const Attention& args, const Unit& unit, const Segment& segment,
                           int kv_head, int group) {
    const int dim = (int)args.head_dim, size = BLOCK * dim, first = segment.first * group,
              rows = segment.tokens * group;
    const int window = (int)args.window;
    const float scale = 1.44269504f / sqrtf((float)dim);  // exponentials are powers of two
    const int32_t* table = args.work.tables + segment.table;
    const int32_t* visible = args.work.visible + unit.first_token + segment.first;
    const auto block_of = [&](const element* pool, int block) {
        return pool + ((int64_t)table[block] * args.kv_heads + kv_head) * size;
    };
    const auto first_seen = [&](int token) { return visible[token] > window ? visible[token] - window : 0; };
    int start = INT32_MAX;
    for (int t = 0; t < segment.tokens; t++) start = std::min(start, first_seen(t));
    start = std::max(start / KEY_PANEL * KEY_PANEL, segment.begin);
    constexpr int DEPTHS_IN_BLOCK = BLOCK / DEPTH, MAX_BLOCKS = KEY_PANEL / BLOCK;
    static_assert(KEY_PANEL <= MAX_HEAD_DIM, "b has space for the tiles of a head and of a panel");
    const element *keys[MAX_BLOCKS], *values[MAX_BLOCKS], *b[MAX_HEAD_DIM / DEPTH];
    // Inlined, GCC would move the sums of products through memory.
    const auto multiply = [&](const Product& product) __attribute__((noinline)) { tiles.multiply(product, rows); };
    const bool turns = rows <= FEW && !Tiles::MATRIX;
    const int columns = turns ? WIDTH : BLOCK, depth = turns ? DEPTH : dim;  // of a product
    for (int begin = start; begin < segment.end; begin += KEY_PANEL) {
        const int blocks = (std::min(segment.end - begin, KEY_PANEL) + BLOCK - 1) / BLOCK;
        for (int i = 0; i < blocks; i++) {
            keys[i] = block_of(args.keys, begin / BLOCK + i);
            values[i] = block_of(args.values, begin / BLOCK + i);
            const int ahead = begin / BLOCK + MAX_BLOCKS + i;
            for (int j = 0; Tiles::MATRIX && rows <= FEW && ahead * BLOCK < segment.end && j < size; j += 32) {
                __builtin_prefetch(block_of(args.keys, ahead) + j);
                __builtin_prefetch(block_of(args.values, ahead) + j);
            }
        }
        for (int column = 0; column < BLOCK; column += columns)
            for (int d = 0; d < dim; d += depth)  // blocks alternate: memory is faster in several streams
                for (int i = 0; i < blocks; i++) {
                    const int place = column * dim + d * WIDTH;
                    for (int j = 0; j < depth / DEPTH; j++) b[j] = keys[i] + place + j * TILE;
                    multiply(Product{state.scores + first * KEY_PANEL + i * BLOCK + column, KEY_PANEL,
                                     state.q + first * dim + d, dim, b, columns > WIDTH ? dim * WIDTH : 0,
                                     depth / DEPTH, d == 0, turns ? values[i] + place : nullptr});
                }
        for (int row = 0; row < rows; row++)
            softmax(state, first + row, first_seen(row / group) - begin, visible[row / group] - begin, scale, dim);
        for (int d = 0; d < dim; d += 2 * WIDTH) {
            const int wide = std::min(dim - d, 2 * WIDTH);
            for (int i = 0; i < blocks * DEPTHS_IN_BLOCK; i++)
                b[i] = values[i / DEPTHS_IN_BLOCK] + d * BLOCK + i % DEPTHS_IN_BLOCK * TILE;
            multiply(Product{state.part, wide, state.weights + first * KEY_PANEL, KEY_PANEL, b,
                             wide > WIDTH ? BLOCK * WIDTH : 0, blocks * DEPTHS_IN_BLOCK, true, nullptr});
            for (int i = 0; i < rows * wide; i += LANES) {
                float* sums = state.sums + (first + i / wide) * dim + d + i % wide;
                store(sums, load(sums) + load(state.part + i));
            }
        }
    }
}

static void attend_unit(State& state, Tiles& tiles, const Attention& args, const Unit& unit, int kv_head) {
    const int dim = (int)args.head_dim, all = (int)(args.heads / args.kv_heads);
    for (int start = 0; start < all; start += MAX_ROWS) {
        const int group = std::min(all - start, MAX_ROWS);
        const int64_t head = (int64_t)(kv_head * all + start) * dim;
        const int32_t* tokens = args.work.tokens + unit.first_token;
        const int rows = unit.tokens * group;
        for (int t = 0; t < unit.tokens; t++)
            memcpy(state.q + t * group * dim, args.q + tokens[t] * args.q_token + head, group * dim * sizeof(element));
        memset(state.sums, 0, rows * dim * sizeof(float));
        for (int row = 0; row < rows; row++) state.top[row] = -INFINITY, state.total[row] = 0;
        for (int s = 0; s < unit.segments; s++)
            attend_segment(state, tiles, args, unit, args.work.segments[unit.first_segment + s], kv_head, group);
        for (int row = 0; row < rows; row++) {
            const float share = 1 / state.total[row];
            element* out = args.out + (int64_t)tokens[row / group] * args.heads * dim + head + row % group * dim;
            for (int d = 0; d < dim; d += LANES) store(out + d, load(state.sums + row * dim + d) * share);
        }
    }
}

// Attention of the rows of `out` that the units contain.
extern "C" void attend(const Attention* args, int64_t threads) {
    int64_t work = 0;
    for (int i = 0; i < args->work.count; i++)
        for (int s = 0; s < args->work.units[i].segments; s++) {
            const Segment& segment = args->work.segments[args->work.units[i].first_segment + s];
            work += (int64_t)segment.tokens * (segment.end - segment.begin) * 2 * args->heads * args->head_dim;
        }
#pragma omp parallel num_threads(thread_count(threads, work))
    {
        State state;
        Tiles tiles;
#pragma omp for schedule(dynamic)
        for (int i = 0; i < args->work.count * args->kv_heads; i++)
            attend_unit(state, tiles, *args, args->work.units[i / args->kv_heads], i % (int)args->kv_heads);
    }
}

// Write keys and values (T K D) into the cache. `places`: token index in the cache. Values that are not finite become
// 0: a row that does not see them, perhaps of another sequence, multiplies them by 0. Their keys keep NaN and infinity.
extern "C" void write_cache(element* keys, element* values, const element* k, int64_t k_token, const element* v,
                            int64_t v_token, const int64_t* places, int64_t count, int64_t kv_heads, int64_t head_dim,
                            int64_t threads) {
#pragma omp parallel for num_threads(thread_count(threads, count * kv_heads * head_dim * 8))
    for (int t = 0; t < count; t++) {
        const int64_t block = places[t] / BLOCK;
        const int offset = places[t] % BLOCK;
        for (int head = 0; head < kv_heads; head++) {
            const int64_t start = (block * kv_heads + head) * BLOCK * head_dim;
            const element* from = k + t * k_token + head * head_dim;
            element* to = keys + start + offset / WIDTH * WIDTH * head_dim;
            for (int d = 0; d < head_dim; d += GRAIN)
                memcpy(to + Layout::offset_of(d, offset % WIDTH), from + d, GRAIN * sizeof(element));
            from = v + t * v_token + head * head_dim;
            to = values + start;
            for (int d = 0; d < head_dim; d++)
                to[d / WIDTH * WIDTH * BLOCK + Layout::offset_of(offset, d % WIDTH)] =
                    is_finite(from[d]) ? from[d] : element{};
        }
    }
}
