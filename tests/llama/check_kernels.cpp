// Checks the kernels against their definitions in double precision, and prints a hash of the results of each. The hashes
// of float32 are the same for every instruction set, except that AMX sums products with weights of bfloat16 in another
// order. Compiled by test_native.py.
#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <string>
#include <vector>

#include "kernels.cpp"

typedef std::vector<element> Elements;

constexpr bool NARROW = sizeof(element) == 2;
constexpr double ROUNDING = NARROW ? 0x1p-7 : 0;  // of a result and of the values that it is computed from

static std::map<std::string, uint64_t> hashes;

static float drawn() {
    static uint64_t state = 1;
    float sum = -6;
    for (int i = 0; i < 12; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(state >> 40) / (1 << 24);
    }
    return sum;
}

// The nearest element.
static element element_of(float x) {
#ifdef BFLOAT16
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bfloat16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#else
    return x;
#endif
}

static double value_of(element x) {
#ifdef BFLOAT16
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#else
    return x;
#endif
}

static Elements many(size_t count) {
    Elements made(count);
    for (element& x : made) x = element_of(drawn());
    return made;
}

static void fail(const std::string& what, const char* why) {
    printf("%s: %s\n", what.c_str(), why);
    exit(1);
}

static void add_to_hash(const std::string& what, const Elements& found) {
    uint64_t& hash = hashes.emplace(what, 14695981039346656037u).first->second;
    for (const element& x : found) {
        uint32_t bits = 0;
        memcpy(&bits, &x, sizeof x);
        hash = (hash ^ bits) * 1099511628211u;
    }
}

static void compare(const std::string& what, const Elements& found, const std::vector<double>& exact, double tolerance) {
    if (found.size() != exact.size()) fail(what, "the numbers of results differ");
    for (size_t i = 0; i < found.size(); i++)
        if (!(fabs(value_of(found[i]) - exact[i]) <= tolerance * (1 + fabs(exact[i])))) {
            printf("%s: element %zu is %.9g, not %.9g\n", what.c_str(), i, value_of(found[i]), exact[i]);
            exit(1);
        }
}

static void check(const std::string& what, const Elements& found, const std::vector<double>& exact, double tolerance) {
    add_to_hash(what, found);
    compare(what, found, exact, tolerance);
}

static double silu(double x) {
    return x / (1 + exp(-x));
}

static void check_elementwise() {
    const int rows = 5;
    for (int size : {20, 64, 99}) {
        const Elements x = many(rows * size), delta = many(rows * size), weight = many(size);
        Elements total(rows * size), out(rows * size);
        add_rms_norm(total.data(), out.data(), x.data(), delta.data(), weight.data(), 1e-5f, rows, size, 2);
        std::vector<double> sums, normed;
        for (int i = 0; i < rows * size; i++) {
            double squares = 0;
            for (int j = i / size * size; j < (i / size + 1) * size; j++) squares += pow(value_of(total[j]), 2);
            sums.push_back(value_of(x[i]) + value_of(delta[i]));
            normed.push_back(value_of(total[i]) / sqrt(squares / size + 1e-5) * value_of(weight[i % size]));
        }
        check("sum", total, sums, 1e-6 + ROUNDING);
        check("norm", out, normed, 1e-5 + ROUNDING);

        const int dim = size / 2 * 2, heads = 3;
        const Elements q = many(rows * (heads + 1) * dim), cosines = many(rows * dim), sines = many(rows * dim);
        Elements turned(rows * heads * dim);
        std::vector<double> exact;
        rotate(turned.data(), q.data(), (heads + 1) * dim, cosines.data(), sines.data(), rows, heads, dim, 2);
        for (int i = 0; i < rows * heads * dim; i++) {
            const int token = i / (heads * dim), d = i % dim;
            const element* head = q.data() + token * (heads + 1) * dim + i % (heads * dim) / dim * dim;
            exact.push_back(value_of(head[d]) * value_of(cosines[token * dim + d]) +
                            value_of(head[(d + dim / 2) % dim]) * value_of(sines[token * dim + d]));
        }
        check("rotation", turned, exact, 1e-6 + ROUNDING);
    }
}

// Rounded so that the type of packed weights represents it.
static float weight_of(int type) {
    const float scale = type == 1 ? 64 : 512;
    return type ? roundf(drawn() * scale / 8) / scale : drawn();
}

static uint16_t upper_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static void convert(element& to, float from) {
    to = element_of(from);
}

#ifndef BFLOAT16
static void convert(bfloat16& to, float from) {
    to = upper_half(from);
}
#endif

// The float16 of a number that it represents: the exponents' biases differ by 112.
static void convert(float16& to, float from) {
    const float size = fabsf(from) * 0x1p-112f;
    uint32_t bits;
    memcpy(&bits, &size, sizeof bits);
    to.bits = (uint16_t)((upper_half(from) & 0x8000) | bits >> 13);
}

// A weight in the layout that tiles.h and linear.h describe, aligned to a cache line.
template <typename W>
static void* packed_as(const Elements& weight, int outputs, int inputs, int gated) {
    constexpr int GRAIN = TileLayout<W>::GRAIN;
    const int panels = (outputs + 31) / 32;
    W* packed = (W*)aligned_alloc(64, (size_t)panels * 32 * inputs * sizeof(W));
    for (int tile = 0; tile < 2 * panels; tile++)
        for (int i = 0; i < 16 * inputs; i++) {
            const int column = i / GRAIN % 16, input = i / GRAIN / 16 * GRAIN + i % GRAIN;
            const int output = (gated ? tile / 2 * 16 + tile % 2 * (outputs / 2) : tile * 16) + column;
            const float x = output < outputs ? (float)value_of(weight[output * inputs + input]) : 0;
            convert(packed[(size_t)tile * 16 * inputs + i], x);
        }
    return packed;
}

// All rows at once against the definition, and fewer rows at a time against all.
static void check_products(int rows, int outputs, int inputs, int gated) {
    for (int type = 0; type < (NARROW ? 1 : 3); type++) {
        const std::string what = std::string(gated ? "gated " : "") + "product with weights of type " + std::to_string(type);
        Elements weight(outputs * inputs);
        for (element& x : weight) x = element_of(weight_of(type));
        // A subnormal number, and no bfloat16
        if (type == 2) weight[0] = element_of(0x1.8p-16f), weight[1] = element_of(1 + 0x1p-10f);
        void* packed = type == 1   ? packed_as<bfloat16>(weight, outputs, inputs, gated)
                       : type == 2 ? packed_as<float16>(weight, outputs, inputs, gated)
                                   : packed_as<element>(weight, outputs, inputs, gated);
        Elements x = many(rows * inputs);
        const Elements bias = many(outputs);
        const Weight described{packed, bias.data(), outputs, inputs, gated, type};
        const int columns = gated ? outputs / 2 : outputs;
        const auto product = [&](int first, int count) {
            Elements out((size_t)count * columns);
            linear(out.data(), x.data() + first * inputs, count, &described, 2);
            return out;
        };
        const Elements all = product(0, rows);
        add_to_hash(what, all);
        const auto sum = [&](int row, int output) {
            double total = value_of(bias[output]);
            for (int i = 0; i < inputs; i++) total += value_of(x[row * inputs + i]) * value_of(weight[output * inputs + i]);
            return total;
        };
        for (int row = rows - 1; row >= 0; row -= 5) {
            std::vector<double> exact;
            for (int i = 0; i < columns; i++)
                exact.push_back(gated ? silu(sum(row, i)) * sum(row, i + columns) : sum(row, i));
            const auto begin = all.begin() + row * columns;
            compare(what, Elements(begin, begin + columns), exact, (gated || !type ? 5e-5 : 1e-5) + (gated ? 4 : 1) * ROUNDING);
        }
        int first = 0;
        for (int count : {1, 2, 7, 8, 31, 32, 64, 257}) {
            if (first + count > rows) first = 0;
            if (count > rows) break;
            const Elements some = product(first, count);
            if (memcmp(some.data(), all.data() + first * columns, some.size() * sizeof(element)))
                fail(what, ("another number of rows changes bits: " + std::to_string(count)).c_str());
            first += count;
        }
        x[0] = element_of(INFINITY);
        if (memcmp(product(0, rows).data() + columns, all.data() + columns, (rows - 1) * columns * sizeof(element)))
            fail(what, "infinity in a row changes another");
        free(packed);
    }
}

// Attention of the last tokens of a sequence, in units as attention/native.py makes them.
static void check_attention(int heads, int kv_heads, int dim, int keys, int tokens, int window) {
    constexpr int MAX_ROWS_OF_UNIT = 32;
    const int blocks = (keys + BLOCK - 1) / BLOCK, group = heads / kv_heads;
    std::vector<int32_t> table(blocks);
    for (int i = 0; i < blocks; i++) table[i] = (i * 7 + 3) % (blocks + 7 - blocks % 7 + 1);
    const size_t pool = (size_t)(blocks + 9) * kv_heads * BLOCK * dim;
    Elements k_pool(pool, element_of(INFINITY)), v_pool(pool, element_of(-1e4f));
    const Elements k = many(keys * kv_heads * dim), v = many(keys * kv_heads * dim), q = many(tokens * heads * dim);
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
    Elements out(tokens * heads * dim);
    const Work work{units.data(), (int64_t)units.size(), rows.data(), visible.data(), segments.data(), table.data()};
    const Attention attention{out.data(), q.data(), heads * dim, k_pool.data(), v_pool.data(), heads, kv_heads, dim, window, work};
    attend(&attention, 2);
    std::vector<double> exact(out.size());
    for (int i = 0; i < tokens * heads; i++) {
        const int seen = visible[i / heads], kv_head = i % heads / group;
        double total = 0;
        for (int key = window < seen ? seen - window : 0; key < seen; key++) {
            double score = 0;
            for (int d = 0; d < dim; d++) score += value_of(q[i * dim + d]) * value_of(k[(key * kv_heads + kv_head) * dim + d]);
            const double share = exp(score / sqrt(dim));
            total += share;
            for (int d = 0; d < dim; d++) exact[i * dim + d] += share * value_of(v[(key * kv_heads + kv_head) * dim + d]);
        }
        for (int d = 0; d < dim; d++) exact[i * dim + d] /= total;
    }
    check("attention", out, exact, 1e-5 + ROUNDING);
}

int main() {
    if (!initialise()) fail("AMX", "Linux does not grant the tile registers");
    check_elementwise();
    check_products(290, 143, 160, 0);
    check_products(45, 47, 288, 0);
    check_products(70, 64, 160, 1);
    check_attention(6, 2, NARROW ? 96 : 48, 300, 40, INT32_MAX);
    check_attention(4, 4, 32, 290, 20, 130);
    check_attention(35, 1, NARROW ? 32 : 16, 200, 3, 1);
    check_attention(8, 4, 256, 129, 1, INT32_MAX);
    for (const auto& found : hashes) printf("%s: %016llx\n", found.first.c_str(), (unsigned long long)found.second);
}
