// Causal grouped-query attention over a paged cache (Kwon et al., 2023) with an online softmax (Dao, 2023).
//
// A block of the cache has 32 tokens. The keys of one head in it are stored as the tiles of a product Q K^T, its values
// as those of P V, so that products read the cache in place. Softmax processes PANEL keys at a time, counted from the
// start of the sequence, so a row's result depends only on its own sequence, bit for bit.
#include "kernels.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using Layout = TileLayout<element>;
constexpr int GRAIN = Layout::GRAIN, DEPTH = Layout::DEPTH, TILE = Layout::TILE;
constexpr int BLOCK = 32;
constexpr int PANEL = 128;
constexpr int MAX_HEAD_DIM = 256;

struct AttentionArgs {
    element* out;
    const element* q;
    int64_t q_token;
    const element* keys;
    const element* values;
    int heads, kv_heads, head_dim, window;
    float scale;
    const int32_t* tokens;
    const int32_t* visible;
    const Segment* segments;
    const int32_t* tables;
};

struct State {
    alignas(64) element q[MAX_ROWS * MAX_HEAD_DIM];
    alignas(64) float scores[MAX_ROWS * PANEL];
    alignas(64) element weights[MAX_ROWS * PANEL];
    alignas(64) float sums[MAX_ROWS * MAX_HEAD_DIM], part[MAX_ROWS * 2 * WIDTH];
    float top[MAX_ROWS], total[MAX_ROWS];
};

// exp2_of without denormal results, which are about a hundred times slower. NaN stays NaN.
Vector weight_of(const Vector& x) {
    return exp2_of(larger(splat(-125.0f), x));
}

#ifdef BFLOAT16
bool is_finite(bfloat16 x) {
    return (x & 0x7f80) != 0x7f80;
}
#else
bool is_finite(float x) {
    return x - x == 0;
}
#endif

// Softmax weights of one row over a panel of which it sees the keys `first` to `end`: 2^(score * scale), with a running
// maximum and sum over the panels. Masked keys have weight 0.
template <bool FULL>
void softmax(State& state, int row, int first, int end, float scale, int head_dim) {
    constexpr int VECTORS = PANEL / WIDTH;
    const float* scores = state.scores + row * PANEL;
    element* weights = state.weights + row * PANEL;
    const auto seen = [&](const Vector& x, int i, float other) {
        return FULL ? x : masked(x, first - i * WIDTH, end - i * WIDTH, other);
    };
    Vector most = seen(load(scores), 0, -INFINITY);
    for (int i = 1; i < VECTORS; i++) most = larger(most, seen(load(scores + i * WIDTH), i, -INFINITY));
    const float before = state.top[row], top = fmaxf(before, largest(most));
    const Vector factor = splat(scale), shift = splat(-top * scale);
    const auto weight = [&](int i) {
        return seen(weight_of(fused(load(scores + i * WIDTH), factor, shift)), i, 0);
    };
    Vector total = splat(0);
    for (int i = 0; i < VECTORS; i += 2) {
        const Vector low = weight(i), high = weight(i + 1);
        total = total + (low + high);
        store(weights + i * WIDTH, low);
        store(weights + (i + 1) * WIDTH, high);
    }
    if (top != before) {
        const Vector shrink = weight_of(splat((before - top) * scale));
        float* sums = state.sums + row * head_dim;
        for (int d = 0; d < head_dim; d += WIDTH) store(sums + d, load(sums + d) * shrink);
        state.total[row] *= shrink.part[0][0];
        state.top[row] = top;
    }
    state.total[row] += sum_of(total);
}

// Softmax of a row that sees the keys `first` to `end`, counted from the start of the panel.
void softmax_row(State& state, int row, int first, int end, float scale, int head_dim) {
    if (first <= 0 && end >= PANEL)
        softmax<true>(state, row, 0, PANEL, scale, head_dim);
    else if (end > 0 && first < PANEL)
        softmax<false>(state, row, first, end, scale, head_dim);
    else
        memset(state.weights + row * PANEL, 0, PANEL * sizeof(element));
}

// Rows `first` to `first + rows` of a unit, over the keys of one segment.
void attend_segment(State& state, Tiles& tiles, const AttentionArgs& args, const Unit& unit, const Segment& segment,
                    int kv_head, int group) {
    const int dim = args.head_dim, size = BLOCK * dim, first = segment.first * group, rows = segment.tokens * group;
    const int32_t* table = args.tables + segment.table;
    const int32_t* visible = args.visible + unit.first_token + segment.first;
    const auto block_of = [&](const element* pool, int block) {
        return pool + ((int64_t)table[block] * args.kv_heads + kv_head) * size;
    };
    const auto first_seen = [&](int token) { return visible[token] > args.window ? visible[token] - args.window : 0; };
    int start = first_seen(0);
    for (int t = 1; t < segment.tokens; t++) start = first_seen(t) < start ? first_seen(t) : start;
    start = start / PANEL * PANEL;
    constexpr int DEPTHS_IN_BLOCK = BLOCK / DEPTH, MAX_BLOCKS = PANEL / BLOCK;
    static_assert(PANEL <= MAX_HEAD_DIM, "b has space for the tiles of a head and of a panel");
    const element *keys[MAX_BLOCKS], *values[MAX_BLOCKS], *b[MAX_HEAD_DIM / DEPTH];
    const bool turns = rows <= FEW && !Tiles::MATRIX;
    const int columns = turns ? WIDTH : BLOCK, depth = turns ? DEPTH : dim;  // of a product
    for (int begin = start > segment.begin ? start : segment.begin; begin < segment.end; begin += PANEL) {
        const int blocks = ((segment.end - begin < PANEL ? segment.end - begin : PANEL) + BLOCK - 1) / BLOCK;
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
            for (int d = 0; d < dim; d += depth)  // blocks by turns: memory is faster in several streams
                for (int i = 0; i < blocks; i++) {
                    const int place = column * dim + d * WIDTH;
                    for (int j = 0; j < depth / DEPTH; j++) b[j] = keys[i] + place + j * TILE;
                    tiles.multiply({state.scores + first * PANEL + i * BLOCK + column, PANEL, state.q + first * dim + d, dim,
                                    b, columns > WIDTH ? dim * WIDTH : 0, depth / DEPTH, d == 0,
                                    turns ? values[i] + place : nullptr},
                                   rows);
                }
        for (int row = 0; row < rows; row++)
            softmax_row(state, first + row, first_seen(row / group) - begin, visible[row / group] - begin, args.scale, dim);
        for (int d = 0; d < dim; d += 2 * WIDTH) {
            const int wide = dim - d > WIDTH ? 2 * WIDTH : WIDTH;
            for (int i = 0; i < blocks * DEPTHS_IN_BLOCK; i++)
                b[i] = values[i / DEPTHS_IN_BLOCK] + d * BLOCK + i % DEPTHS_IN_BLOCK * TILE;
            tiles.multiply({state.part, wide, state.weights + first * PANEL, PANEL, b, wide > WIDTH ? BLOCK * WIDTH : 0,
                            blocks * DEPTHS_IN_BLOCK, true, nullptr},
                           rows);
            for (int i = 0; i < rows * wide; i += WIDTH) {
                float* sums = state.sums + (first + i / wide) * dim + d + i % wide;
                store(sums, load(sums) + load(state.part + i));
            }
        }
    }
}

void attend_unit(State& state, Tiles& tiles, const AttentionArgs& args, const Unit& unit, int kv_head) {
    const int dim = args.head_dim, all = args.heads / args.kv_heads;
    for (int start = 0; start < all; start += MAX_ROWS) {
        const int group = all - start < MAX_ROWS ? all - start : MAX_ROWS;
        const int64_t head = (int64_t)(kv_head * all + start) * dim;
        const int32_t* tokens = args.tokens + unit.first_token;
        const int rows = unit.tokens * group;
        for (int t = 0; t < unit.tokens; t++)
            memcpy(state.q + t * group * dim, args.q + tokens[t] * args.q_token + head, group * dim * sizeof(element));
        memset(state.sums, 0, rows * dim * sizeof(float));
        for (int row = 0; row < rows; row++) state.top[row] = -INFINITY, state.total[row] = 0;
        for (int s = 0; s < unit.segments; s++)
            attend_segment(state, tiles, args, unit, args.segments[unit.first_segment + s], kv_head, group);
        for (int row = 0; row < rows; row++) {
            const Vector share = splat(1 / state.total[row]);
            element* out = args.out + (int64_t)tokens[row / group] * args.heads * dim + head + row % group * dim;
            for (int d = 0; d < dim; d += WIDTH) store(out + d, load(state.sums + row * dim + d) * share);
        }
    }
}

}  // namespace

// Attention of the rows of `out` (T H D, contiguous) that the units contain. `q` has `q_token` elements between tokens.
// Each row sees its last `window` keys.
extern "C" void attend(element* out, const element* q, int64_t q_token, const element* keys, const element* values,
                       int heads, int kv_heads, int head_dim, int window, const Unit* units, int count, const int32_t* tokens,
                       const int32_t* visible, const Segment* segments, const int32_t* tables, int threads) {
    const float scale = 1.44269504f / sqrtf((float)head_dim);  // exponentials are powers of two
    const AttentionArgs args{out,   q,      q_token, keys,     values, heads, kv_heads, head_dim, window,
                             scale, tokens, visible, segments, tables};
    int64_t work = 0;
    for (int i = 0; i < count; i++)
        for (int s = units[i].first_segment; s < units[i].first_segment + units[i].segments; s++)
            work += (int64_t)segments[s].tokens * (segments[s].end - segments[s].begin) * 2 * heads * head_dim;
#pragma omp parallel num_threads(thread_count(threads, work))
    {
        State state;
        Tiles tiles;
#pragma omp for schedule(dynamic)
        for (int i = 0; i < count * kv_heads; i++) attend_unit(state, tiles, args, units[i / kv_heads], i % kv_heads);
    }
}

// Write keys and values (T K D) into the cache. `places`: token index in the cache. Values that are not finite become 0:
// a row that does not see them, perhaps of another sequence, multiplies them by 0. Their keys keep NaN and infinity.
extern "C" void write_cache(element* keys, element* values, const element* k, int64_t k_token, const element* v,
                            int64_t v_token, const int64_t* places, int count, int kv_heads, int head_dim,
                            int threads) {
    const int tiles = head_dim / DEPTH;
#pragma omp parallel for num_threads(thread_count(threads, (int64_t)count * kv_heads * head_dim * 8))
    for (int t = 0; t < count; t++) {
        const int64_t block = places[t] / BLOCK;
        const int offset = places[t] % BLOCK;
        for (int head = 0; head < kv_heads; head++) {
            const int64_t start = (block * kv_heads + head) * BLOCK * head_dim;
            const element* from = k + t * k_token + head * head_dim;
            element* to = keys + start + offset / WIDTH * tiles * TILE;
            for (int d = 0; d < head_dim; d += GRAIN)
                memcpy(to + d / DEPTH * TILE + Layout::offset_of(d % DEPTH, offset % WIDTH), from + d,
                       GRAIN * sizeof(element));
            from = v + t * v_token + head * head_dim;
            to = values + start + offset / DEPTH * TILE;
            for (int d = 0; d < head_dim; d++)
                to[d / WIDTH * WIDTH * BLOCK + Layout::offset_of(offset % DEPTH, d % WIDTH)] =
                    is_finite(from[d]) ? from[d] : element{};
        }
    }
}

// Call once before any other kernel: requests the AMX tile registers from Linux. Returns 0 if they are not granted.
extern "C" int initialise() {
#ifdef __AMX_BF16__
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return 1;
#endif
}
