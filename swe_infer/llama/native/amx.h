// Products with AMX. Included by tiles.h.
#pragma once

// A matrix for MatrixTiles, with the strides of its tiles of 16 rows, in elements. It is a sum of matrices, its parts.
struct SplitMatrix {
    const bfloat16* first;
    // Strides of rows, of tiles along the depth, of parts, and from the upper to the lower 16 rows.
    int64_t row, chunk, part, lower;
};

// The AMX tile registers of this thread: 0 to 3 are C, 4 and 5 A, 6 and 7 B.
class MatrixTiles {
public:
    // A product of `rows` rows and 32 columns: C (or 0, if `zero_init`) + A B. Tiles of columns 0 to 15 are at `b[i]`,
    // those of columns 16 to 31 are `second` elements after them.
    template <int PARTS>
    void multiply(float* c, int c_row, const SplitMatrix& a, int rows, const bfloat16* const* b, int64_t second,
                  int chunks, bool zero_init) {
        in_memory(a.first);  // GCC's tile loads do not declare that they read memory
        if (rows > 16) {
            configure(16, rows - 16);
            product<PARTS, true>(c, c_row, a, b, second, chunks, zero_init);
        } else {
            configure(rows, 16);
            product<PARTS, false>(c, c_row, a, b, second, chunks, zero_init);
        }
    }

    ~MatrixTiles() {
        if (upper_) _tile_release();
    }

private:
    // TALL: more than 16 rows.
    template <int PARTS, bool TALL>
    static void product(float* c, int c_row, const SplitMatrix& a, const bfloat16* const* b, int64_t second, int chunks,
                        bool zero_init) {
        float* low = c + 16 * c_row;
        if (zero_init) {
            _tile_zero(0);
            _tile_zero(1);
            if (TALL) _tile_zero(2);
            if (TALL) _tile_zero(3);
        } else {
            _tile_loadd(0, c, 4 * c_row);
            _tile_loadd(1, c + WIDTH, 4 * c_row);
            if (TALL) _tile_loadd(2, low, 4 * c_row);
            if (TALL) _tile_loadd(3, low + WIDTH, 4 * c_row);
        }
        for (int i = 0; i < chunks; i++) {
            _tile_loadd(6, b[i], 64);
            _tile_loadd(7, b[i] + second, 64);
            for (int p = 0; p < PARTS; p++) {
                const bfloat16* upper = a.first + i * a.chunk + p * a.part;
                _tile_loadd(4, upper, 2 * a.row);
                if (TALL) _tile_loadd(5, upper + a.lower, 2 * a.row);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                if (TALL) _tile_dpbf16ps(2, 5, 6);
                if (TALL) _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, c, 4 * c_row);
        _tile_stored(1, c + WIDTH, 4 * c_row);
        if (TALL) _tile_stored(2, low, 4 * c_row);
        if (TALL) _tile_stored(3, low + WIDTH, 4 * c_row);
    }

    void configure(int upper, int lower) {
        if (upper == upper_ && lower == lower_) return;
        upper_ = upper, lower_ = lower;
        struct {
            uint8_t palette, start, reserved[14];
            uint16_t bytes[16];
            uint8_t rows[16];
        } layout;
        memset(&layout, 0, sizeof layout);
        layout.palette = 1;
        const int rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
        for (int i = 0; i < 8; i++) layout.bytes[i] = 64, layout.rows[i] = (uint8_t)rows[i];
        in_memory(&layout);
        _tile_loadconfig(&layout);
    }

    static void in_memory(const void* what) { __asm__ volatile("" ::"r"(what) : "memory"); }

    int upper_ = 0, lower_ = 0;
};
