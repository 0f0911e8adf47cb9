// The kernels that Python calls, with those of attention.h and linear.h: the operations between products, which round
// where those of swe_infer.llama.model round, and all layers of a Llama in one call. Members of structs that Python
// passes have 64 bits each.
#include "attention.h"
#include "linear.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr int COST = 4;  // cost of an element in multiplications, memory traffic and rounding included

// total = x + delta (not written if delta is null); out = its root mean square norm times weight.
extern "C" void add_rms_norm(element* total, element* out, const element* x, const element* delta,
                             const element* weight, float eps, int64_t rows, int64_t size, int64_t threads) {
#pragma omp parallel for num_threads(thread_count(threads, rows * size * COST))
    for (int64_t row = 0; row < rows; row++) {
        const element* from = x + row * size;
        Vector squares[PARTS] = {};
        for (int i = 0; i < size; i += WIDTH)
            for (int j = 0; j < PARTS; j++) {
                const int at = i + j * LANES, count = (int)size - at;
                Vector value = load(from + at, count);
                if (delta) {
                    value = rounded(value + load(delta + row * size + at, count));
                    store(total + row * size + at, value, count);
                }
                squares[j] = fused(value, value, squares[j]);
            }
        if (delta) from = total + row * size;
        const float scale = 1 / sqrtf(sum_of(squares) / (float)size + eps);
        for (int i = 0; i < size; i += LANES) {
            const int count = (int)size - i;
            store(out + row * size + i, rounded(load(from + i, count) * scale) * load(weight + i, count), count);
        }
    }
}

// Rotate `heads` heads of each token. `x` has `x_token` elements between tokens; out is contiguous. The first half of
// sin is negated.
extern "C" void rotate(element* out, const element* x, int64_t x_token, const element* cos, const element* sin,
                       int64_t tokens, int64_t heads, int64_t head_dim, int64_t threads) {
    const int half = (int)head_dim / 2;
#pragma omp parallel for num_threads(thread_count(threads, tokens * heads * head_dim * COST))
    for (int64_t token = 0; token < tokens; token++)
        for (int head = 0; head < heads; head++) {
            const element* from = x + token * x_token + head * head_dim;
            element* to = out + (token * heads + head) * head_dim;
            for (int i = 0; i < half; i += LANES) {
                const int count = half - i;
                const Vector first = load(from + i, count), second = load(from + half + i, count);
                const element* c = cos + token * head_dim + i;
                const element* s = sin + token * head_dim + i;
                const Vector low = rounded(first * load(c, count)), high = rounded(second * load(c + half, count));
                store(to + i, fused(second, load(s, count), low), count);
                store(to + half + i, fused(first, load(s + half, count), high), count);
            }
        }
}

struct Layer {
    const element *input_norm, *post_norm;
    Weight qkv, o, gate_up, down;
};

// `scratch` has space for the activations of a layer; see Layers of kernels.py.
struct Step {
    element *x, *delta, *scratch;
    const element *cos, *sin;
    element *keys, *values;
    int64_t pool;  // elements from one layer's pool to the next
    const int64_t* places;
    int64_t rows, attended_rows;
    Work work;
    int64_t layers, heads, kv_heads, head_dim;
};

// x (rows x hidden) becomes the residual stream without the last block's contribution, which is written to delta. The
// units contain the first `attended_rows` rows; the others are padding.
extern "C" void run_layers(const Step* step, const Layer* layers, float eps, int64_t threads) {
    const int64_t rows = step->rows, dim = step->head_dim, heads = step->heads, kv_heads = step->kv_heads;
    const int64_t hidden = layers->o.outputs, turned_heads = heads + kv_heads, all_heads = turned_heads + kv_heads;
    element* normed = step->scratch;
    element* qkv = normed + rows * hidden;
    element* turned = qkv + rows * all_heads * dim;
    element* attended = turned + rows * turned_heads * dim;
    element* inner = attended + rows * heads * dim;
    memset(attended + step->attended_rows * heads * dim, 0,
           (rows - step->attended_rows) * heads * dim * sizeof(element));
    for (int i = 0; i < step->layers; i++) {
        const Layer& layer = layers[i];
        element* keys = step->keys + i * step->pool;
        element* values = step->values + i * step->pool;
        add_rms_norm(step->x, normed, step->x, i ? step->delta : nullptr, layer.input_norm, eps, rows, hidden, threads);
        linear(qkv, normed, rows, &layer.qkv, threads);
        rotate(turned, qkv, all_heads * dim, step->cos, step->sin, rows, turned_heads, dim, threads);
        write_cache(keys, values, turned + heads * dim, turned_heads * dim, qkv + turned_heads * dim, all_heads * dim,
                    step->places, rows, kv_heads, dim, threads);
        const Attention attention{attended, turned, turned_heads * dim, keys,      values, heads,
                                  kv_heads, dim,    INT32_MAX,          step->work};
        attend(&attention, threads);
        linear(step->delta, attended, rows, &layer.o, threads);
        add_rms_norm(step->x, normed, step->x, step->delta, layer.post_norm, eps, rows, hidden, threads);
        linear(inner, normed, rows, &layer.gate_up, threads);
        linear(step->delta, inner, rows, &layer.down, threads);
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
