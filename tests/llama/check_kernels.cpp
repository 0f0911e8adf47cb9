// Checks the kernels in float32 against their definitions in double precision, and prints a hash of all results, which
// is the same for every instruction set. Compiled together with the kernels by test_native.py.
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "kernels.h"

typedef std::vector<float> Floats;

static uint64_t results = 14695981039346656037u;

static float drawn() {
    static uint64_t state = 1;
    float sum = -6;
    for (int i = 0; i < 12; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(state >> 40) / (1 << 24);
    }
    return sum;
}

static Floats many(size_t count) {
    Floats made(count);
    for (float& x : made) x = drawn();
    return made;
}

static void check(const char* what, const Floats& found, const std::vector<double>& exact, double tolerance) {
    for (size_t i = 0; i < found.size(); i++) {
        uint32_t bits;
        memcpy(&bits, &found[i], sizeof bits);
        results = (results ^ bits) * 1099511628211u;
        if (!(fabs(found[i] - exact[i]) <= tolerance * (1 + fabs(exact[i])))) {
            printf("%s: element %zu is %.9g, not %.9g\n", what, i, found[i], exact[i]);
            exit(1);
        }
    }
}

static double silu(double x) {
    return x / (1 + exp(-x));
}

static void check_elementwise() {
    const int rows = 5;
    for (int size : {20, 64, 99}) {
        const Floats x = many(rows * size), delta = many(rows * size), weight = many(size);
        Floats total(rows * size), out(rows * size);
        add_rms_norm(total.data(), out.data(), x.data(), delta.data(), weight.data(), 1e-5f, rows, size, 2);
        std::vector<double> sums, normed;
        for (int i = 0; i < rows * size; i++) {
            double squares = 0;
            for (int j = i / size * size; j < (i / size + 1) * size; j++) squares += pow((double)x[j] + delta[j], 2);
            sums.push_back((double)x[i] + delta[i]);
            normed.push_back(sums[i] / sqrt(squares / size + 1e-5) * weight[i % size]);
        }
        check("sum", total, sums, 1e-6);
        check("norm", out, normed, 1e-5);

        Floats activated(rows * size);
        const Floats both = many(2 * rows * size);
        silu_mul(activated.data(), both.data(), rows, size, 2);
        std::vector<double> exact;
        for (int i = 0; i < rows * size; i++) {
            const int gate = i / size * 2 * size + i % size;
            exact.push_back(silu(both[gate]) * both[gate + size]);
        }
        check("silu", activated, exact, 1e-6);

        const int dim = size / 2 * 2, heads = 3;
        const Floats q = many(rows * (heads + 1) * dim), cosines = many(rows * dim), sines = many(rows * dim);
        Floats turned(rows * heads * dim);
        rotate(turned.data(), q.data(), (heads + 1) * dim, cosines.data(), sines.data(), rows, heads, dim, 2);
        exact.clear();
        for (int i = 0; i < rows * heads * dim; i++) {
            const int token = i / (heads * dim), d = i % dim;
            const float* head = q.data() + token * (heads + 1) * dim + i % (heads * dim) / dim * dim;
            exact.push_back((double)head[d] * cosines[token * dim + d] +
                            (double)head[(d + dim / 2) % dim] * sines[token * dim + d]);
        }
        check("rotation", turned, exact, 1e-6);
    }
}

// Rounded so that the type of packed weights represents it.
static float weight_of(int type) {
    const float scale = type == 1 ? 64 : 512;
    return type ? roundf(drawn() * scale / 8) / scale : drawn();
}

static void check_products(int rows, int outputs, int inputs, int gated) {
    for (int type = 0; type < 3; type++) {
        Floats weight(outputs * inputs);
        for (float& x : weight) x = weight_of(type);
        if (type == 2) weight[0] = 0x1.8p-16f, weight[1] = 1 + 0x1p-10f;  // a subnormal number, and no bfloat16
        const int found = packed_type(weight.data(), outputs * inputs, 2);
        if (found != type) printf("weights of type %d were given type %d\n", type, found), exit(1);
        const size_t size = packed_size(outputs, inputs) * (type ? 2 : 4);
        void* packed = aligned_alloc(64, (size + 63) / 64 * 64);
        pack(packed, weight.data(), outputs, inputs, gated, type, 2);
        const Floats x = many(rows * inputs), bias = many(outputs);
        const int columns = gated ? outputs / 2 : outputs;
        Floats out(rows * columns);
        linear(out.data(), x.data(), packed, gated ? nullptr : bias.data(), rows, outputs, inputs, gated, type, 2);
        const auto sum = [&](int row, int output) {
            double total = gated ? 0 : bias[output];
            for (int i = 0; i < inputs; i++) total += (double)x[row * inputs + i] * weight[output * inputs + i];
            return total;
        };
        std::vector<double> exact;
        for (int i = 0; i < rows * columns; i++) {
            const double gate = sum(i / columns, i % columns);
            exact.push_back(gated ? silu(gate) * sum(i / columns, i % columns + columns) : gate);
        }
        check("product", out, exact, 1e-3);
        if (!gated) {
            const int64_t ids[] = {outputs - 1, 0};
            Floats rows_of(2 * inputs);
            unpack(rows_of.data(), packed, ids, 2, inputs, type, 2);
            exact.clear();
            for (int i = 0; i < 2 * inputs; i++) exact.push_back(weight[ids[i / inputs] * inputs + i % inputs]);
            check("unpacked", rows_of, exact, 0);
        }
        free(packed);
    }
}

// Attention of the last tokens of a sequence, in units as attention/native.py makes them.
static void check_attention(int heads, int kv_heads, int dim, int keys, int tokens, int window) {
    constexpr int BLOCK = 32, MAX_ROWS_OF_UNIT = 32;
    const int blocks = (keys + BLOCK - 1) / BLOCK, group = heads / kv_heads;
    std::vector<int32_t> table(blocks);
    for (int i = 0; i < blocks; i++) table[i] = (i * 7 + 3) % (blocks + 7 - blocks % 7 + 1);
    const size_t pool = (size_t)(blocks + 9) * kv_heads * BLOCK * dim;
    Floats k_pool(pool, 1e4f), v_pool(pool, -1e4f);
    const Floats k = many(keys * kv_heads * dim), v = many(keys * kv_heads * dim), q = many(tokens * heads * dim);
    std::vector<int64_t> places;
    for (int i = 0; i < keys; i++) places.push_back(table[i / BLOCK] * BLOCK + i % BLOCK);
    write_cache(k_pool.data(), v_pool.data(), k.data(), kv_heads * dim, v.data(), kv_heads * dim, places.data(), keys,
                kv_heads, dim, 2);
    std::vector<Unit> units;
    std::vector<Segment> segments;
    std::vector<int32_t> rows, visible;
    const int step = group < MAX_ROWS_OF_UNIT ? MAX_ROWS_OF_UNIT / group : 1;
    for (int first = 0; first < tokens; first += step) {
        const int count = tokens - first < step ? tokens - first : step, end = keys - tokens + first + count;
        units.push_back({first, count, (int32_t)segments.size(), 1});
        segments.push_back({0, count, 0, 0, end});
    }
    for (int i = 0; i < tokens; i++) rows.push_back(i), visible.push_back(keys - tokens + i + 1);
    Floats out(tokens * heads * dim);
    attend(out.data(), q.data(), heads * dim, k_pool.data(), v_pool.data(), heads, kv_heads, dim, window, units.data(),
           (int)units.size(), rows.data(), visible.data(), segments.data(), table.data(), 2);
    std::vector<double> exact(out.size());
    for (int i = 0; i < tokens * heads; i++) {
        const int seen = visible[i / heads], kv_head = i % heads / group;
        double total = 0;
        for (int key = window < seen ? seen - window : 0; key < seen; key++) {
            double score = 0;
            for (int d = 0; d < dim; d++) score += (double)q[i * dim + d] * k[(key * kv_heads + kv_head) * dim + d];
            const double share = exp(score / sqrt(dim));
            total += share;
            for (int d = 0; d < dim; d++) exact[i * dim + d] += share * v[(key * kv_heads + kv_head) * dim + d];
        }
        for (int d = 0; d < dim; d++) exact[i * dim + d] /= total;
    }
    check("attention", out, exact, 1e-5);
}

int main() {
    check_elementwise();
    for (int rows : {1, 3, 8, 45}) check_products(rows, 47, 160, 0);
    check_products(9, 64, 32, 1);
    check_attention(6, 2, 48, 300, 40, INT32_MAX);
    check_attention(4, 4, 32, 290, 20, 130);
    check_attention(35, 1, 16, 200, 3, 1);
    printf("%016llx\n", (unsigned long long)results);
}
