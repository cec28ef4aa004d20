/* Products in int16, for processors that do not multiply in bfloat16: twice as many products per instruction as in float32.

   A row of floats becomes whole numbers times a power of two, chosen so that the norm of the whole numbers is below 2^15.
   Then a product of two rows, and every part of its sum, is below 2^31 (Cauchy and Schwarz), so that sums in int32 are exact,
   and the same by every kernel. int8 would save nothing with AVX2, which needs two instructions for a sum of its products,
   and rounds so much that it rules out too little. */

#include "kernels.h"
#include "rounding.h"

static void round_to_int16(int64_t first, int64_t last, int64_t d, const float *rows, int16_t *rounded, float *scales,
                           float *norms, float *errors) {
    const int64_t even = d + d % 2;
    for (int64_t i = first; i < last; i++) {
        const float *row = rows + i * d;
        floats squares = {0}, lost = {0};
        for (int64_t j = 0; j < d; j += LANES) {
            const floats exact = load_up_to(row, j, d);
            squares += exact * exact;
        }
        norms[i] = norm_of(squares);
        /* One percent more, so that no number reaches 2^15 although the norm is itself rounded. Where it is not finite, nothing
           of the row will be read. */
        int exponent = 0;
        if (norms[i] < FLT_MAX / 2) frexpf(1.01f * norms[i], &exponent);
        const float scale = ldexpf(1, exponent - 15), inverse = ldexpf(1, 15 - exponent);
        for (int64_t j = 0; j < even; j += LANES) {
            const int64_t n = even - j < LANES ? even - j : LANES;
            const floats exact = load_up_to(row, j, d);
            const floats scaled = exact * inverse, shift = (floats){0} + 0x1.8p23f;
            /* Adding and taking away so large a number leaves the nearest whole one. NaN and infinity become 0. */
            const ints fits = (scaled < 0x1p15f) & (scaled > -0x1p15f);
            const floats whole = (floats)((ints)((scaled + shift) - shift) & fits);
            const floats error = exact - whole * scale;
            const halves numbers = __builtin_convertvector(__builtin_convertvector(whole, ints), halves);
            lost += error * error;
            memcpy(rounded + i * even + j, &numbers, sizeof(int16_t) * n);
        }
        scales[i] = scale;
        errors[i] = norm_of(lost);
    }
}

/* Rows as whole numbers times a scale for each row; norms and errors are those of scansion_round_rows. There is a zero after a
   row of odd length. */
void EXPORT(round_to_int16)(int64_t n_threads, int64_t n_rows, int64_t d, const float *rows, int16_t *rounded, float *scales,
                            float *norms, float *errors) {
#pragma omp parallel num_threads(n_threads)
    round_to_int16(MINE(n_rows), d, rows, rounded, scales, norms, errors);
}

/* Pack the first n of n_packed rows, and zeros for the others. */
INLINE void pack(int64_t n, int64_t n_packed, int64_t n_pairs, const int16_t *rows, int32_t *packed) {
    for (int64_t pair = 0; pair < n_pairs; pair++)
        for (int64_t i = 0; i < n_packed; i++)
            if (i < n)
                memcpy(packed + pair * n_packed + i, rows + 2 * (i * n_pairs + pair), sizeof(int32_t));
            else
                packed[pair * n_packed + i] = 0;
}

/* Rows of x that are packed at once, so that they stay in the cache while they meet all rows of W. */
#define PACKED 512

/* scansion_multiply_int16 for rows of W from first to last (exclusive), in multiples of COLUMNS. */
static int64_t multiply_int16(int64_t first, int64_t last, int64_t n_rows, int64_t n_pairs, int64_t stride, const kernel *by,
                              const int16_t *x, const float *x_scales, const int16_t *W, const float *W_scales,
                              uint16_t *products) {
    const int64_t step = by->n_rows, at_once = PACKED / step * step;
    int32_t *packed_x = malloc(sizeof(int32_t) * ((at_once + COLUMNS) * n_pairs + MOST_ROWS * COLUMNS));
    if (!packed_x) return 2;
    int32_t *packed_W = packed_x + at_once * n_pairs, *sums = packed_W + COLUMNS * n_pairs;
    for (int64_t start = 0; start < n_rows; start += at_once) {
        const int64_t end = n_rows - start < at_once ? n_rows : start + at_once;
        for (int64_t row = start; row < end; row += step)
            pack(end - row < step ? end - row : step, step, n_pairs, x + 2 * row * n_pairs, packed_x + (row - start) * n_pairs);
        for (int64_t column = first; column < last; column += COLUMNS) {
            const int64_t n = last - column < COLUMNS ? last - column : COLUMNS;
            pack(n, COLUMNS, n_pairs, W + 2 * column * n_pairs, packed_W);
            float scales[COLUMNS] = {0};
            memcpy(scales, W_scales + column, sizeof(float) * n);
            for (int64_t row = start; row < end; row += step) {
                by->multiply(n_pairs, packed_x + (row - start) * n_pairs, packed_W, sums);
                for (int64_t i = 0; i < step && row + i < end; i++) {
                    uint16_t upper[COLUMNS], *to = products + (row + i) * stride + column;
                    for (int64_t j = 0; j < COLUMNS; j += LANES) {
                        const floats whole = __builtin_convertvector(load_bits(sums + i * COLUMNS + j), floats);
                        *(halves *)(upper + j) = upper_halves(nearest((words)(whole * (load(scales + j) * x_scales[row + i]))));
                    }
                    if (n == COLUMNS)
                        memcpy(to, upper, sizeof(upper));
                    else
                        memcpy(to, upper, sizeof(uint16_t) * n);
                }
            }
        }
    }
    free(packed_x);
    return 0;
}

/* x W' in bfloat16, of rows that scansion_round_to_int16 has rounded, each of n_pairs pairs of numbers; products has rows that
   are stride numbers apart, and which is the kernel. Returns 0; 2 where there is no memory. */
int64_t EXPORT(multiply_int16)(int64_t n_threads, int64_t n_rows, int64_t width, int64_t n_pairs, int64_t stride, int64_t which,
                               const int16_t *x, const float *x_scales, const int16_t *W, const float *W_scales,
                               uint16_t *products) {
    int64_t status = 0;
#pragma omp parallel num_threads(n_threads) reduction(| : status)
    {
        const int64_t panels[] = {MINE((width + COLUMNS - 1) / COLUMNS)}, last = panels[1] * COLUMNS;
        status |= multiply_int16(panels[0] * COLUMNS, last < width ? last : width, n_rows, n_pairs, stride,
                                 scansion_kernels + which, x, x_scales, W, W_scales, products);
    }
    return status;
}
