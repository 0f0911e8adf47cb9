// All layers of a Llama in one call per step: the weights would evict the interpreter's working set between operations.
#include "kernels.h"

namespace {

struct Weight {
    const void* packed;
    const element* bias;
    int32_t type;
};

struct Layer {
    const element* input_norm;
    const element* post_norm;
    Weight qkv, o, gate_up, down;
};

struct Shape {
    int32_t layers, hidden, inner, heads, kv_heads, head_dim;
    float eps;
};

// Arguments of one step. `scratch` is working memory of layers_scratch_size elements.
struct StepArgs {
    element* x;
    element* delta;
    element* scratch;
    const element* cos;
    const element* sin;
    element* keys;
    element* values;
    int64_t pool;  // elements from one layer's pool to the next
    const int64_t* places;
    const Unit* units;
    const int32_t* tokens;
    const int32_t* visible;
    const Segment* segments;
    const int32_t* tables;
    int32_t rows, attended_rows, count, threads;
};

}  // namespace

// Number of elements of StepArgs::scratch.
extern "C" int64_t layers_scratch_size(const Shape* shape, int rows) {
    const int64_t heads = 3 * shape->heads + 3 * shape->kv_heads;
    return rows * (shape->hidden + shape->inner + heads * shape->head_dim);
}

// x (rows x hidden) becomes the residual stream without the last block's contribution, which is written to delta. The
// units contain the first `attended_rows` rows; the others are padding.
extern "C" void run_layers(const Shape* shape, const Layer* layers, const StepArgs* step) {
    const int rows = step->rows, hidden = shape->hidden, dim = shape->head_dim, threads = step->threads;
    const int heads = shape->heads, turned_heads = heads + shape->kv_heads, all_heads = turned_heads + shape->kv_heads;
    element* normed = step->scratch;
    element* qkv = normed + (int64_t)rows * hidden;
    element* turned = qkv + (int64_t)rows * all_heads * dim;
    element* attended = turned + (int64_t)rows * turned_heads * dim;
    element* inner = attended + (int64_t)rows * heads * dim;
    memset(attended + (int64_t)step->attended_rows * heads * dim, 0,
           (size_t)(rows - step->attended_rows) * heads * dim * sizeof(element));
    for (int i = 0; i < shape->layers; i++) {
        const Layer& layer = layers[i];
        element* keys = step->keys + i * step->pool;
        element* values = step->values + i * step->pool;
        add_rms_norm(step->x, normed, step->x, i ? step->delta : nullptr, layer.input_norm, shape->eps, rows, hidden,
                     threads);
        linear(qkv, normed, layer.qkv.packed, layer.qkv.bias, rows, all_heads * dim, hidden, 0, layer.qkv.type,
               threads);
        rotate(turned, qkv, all_heads * dim, step->cos, step->sin, rows, turned_heads, dim, threads);
        write_cache(keys, values, turned + heads * dim, turned_heads * dim, qkv + turned_heads * dim, all_heads * dim,
                    step->places, rows, shape->kv_heads, dim, threads);
        attend(attended, turned, turned_heads * dim, keys, values, heads, shape->kv_heads, dim, INT32_MAX, step->units, step->count,
               step->tokens, step->visible, step->segments, step->tables, threads);
        linear(step->delta, attended, layer.o.packed, layer.o.bias, rows, hidden, heads * dim, 0, layer.o.type,
               threads);
        add_rms_norm(step->x, normed, step->x, step->delta, layer.post_norm, shape->eps, rows, hidden, threads);
        linear(inner, normed, layer.gate_up.packed, nullptr, rows, 2 * shape->inner, hidden, 1, layer.gate_up.type,
               threads);
        linear(step->delta, inner, layer.down.packed, layer.down.bias, rows, hidden, shape->inner, 0, layer.down.type,
               threads);
    }
}
