// All layers of a Llama in one call per step: the weights would evict the interpreter's working set between operations.
// With the kernels that it calls, this is all that Python calls. Members of structs have 64 bits each, so that Python
// writes them as arrays of integers.
#include "attention.h"
#include "elementwise.h"
#include "linear.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

struct Layer {
    const element* input_norm;
    const element* post_norm;
    Weight qkv, o, gate_up, down;
};

// `scratch` has space for the activations of a layer; see layers.py.
struct Step {
    element* x;
    element* delta;
    element* scratch;
    const element* cos;
    const element* sin;
    element* keys;
    element* values;
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
