/* The largest of each row of a product, where a product in bfloat16 or int16 has ruled out nearly all of it. */

#include "bounds.h"
#include "rounding.h"

static void round_rows(int64_t first, int64_t last, int64_t d, const float *rows, uint16_t *rounded, float *norms,
                       float *errors) {
    for (int64_t i = first; i < last; i++) {
        floats squares = {0}, lost = {0};
        for (int64_t j = 0; j < d; j += LANES) {
            const int64_t n = d - j < LANES ? d - j : LANES;
            const floats exact = load_up_to(rows + i * d, j, d);
            const words near = nearest((words)exact);
            const floats error = exact - (floats)near;
            const halves upper = upper_halves(near);
            squares += exact * exact;
            lost += error * error;
            memcpy(rounded + i * d + j, &upper, sizeof(uint16_t) * n);
        }
        norms[i] = norm_of(squares);
        errors[i] = norm_of(lost);
    }
}

/* Rows in bfloat16, with what the norm of each, and of what rounding took from it, does not exceed by more than rounding. */
void EXPORT(round_rows)(int64_t n_threads, int64_t n_rows, int64_t d, const float *rows, uint16_t *rounded, float *norms,
                        float *errors) {
#pragma omp parallel num_threads(n_threads)
    round_rows(MINE(n_rows), d, rows, rounded, norms, errors);
}

/* Dot products of n rows with another; n is known as this is compiled. */
INLINE void dots_of(const int n, int64_t d, const float *const *rows, const float *other, float *dots) {
    floats partial[TOGETHER] = {{0}};
    for (int i = 0; i < n; i++) dots[i] = 0;
    int64_t j = 0;
    for (; j + LANES <= d; j += LANES)
        for (int i = 0; i < n; i++) partial[i] += load(rows[i] + j) * load(other + j);
    for (; j < d; j++)
        for (int i = 0; i < n; i++) dots[i] += rows[i][j] * other[j];
    for (int i = 0; i < n; i++) dots[i] += sum_of_floats(partial[i]);
}

/* What is asked of x W' + b, of which products has x W', multiplied in and rounded to bfloat16; or of its entries times weights.

   Row i of x is of the norm norms[i], and rounding took something of the norm errors[i] from it, at most; column j likewise, but
   that W_errors has besides what is lost by adding up. Column j is named names[j], or j where that is NULL, and has the row of W of
   that name, of d entries. Where the product is minus infinity the entry is closed. b, W_norms and W_errors go on to the next
   multiple of LANES, b with minus infinity. weights, where it is not NULL, has a row of finite numbers for every per_position rows
   of x, which goes on with zeros; where it is 0 the entry is closed. Laid out as native_screen.py has it. */
typedef struct {
    int64_t width, d, per_position;
    const uint16_t *products;
    const float *x, *norms, *errors, *W, *b, *W_norms, *W_errors, *weights;
    const int64_t *names;
} screen;

/* What the entries of a row are multiplied by; NULL for 1. */
INLINE const float *weights_of(const screen *of, int64_t row) {
    return of->weights ? of->weights + row / of->per_position * rounded_up(of->width) : NULL;
}

/* How far an entry of the product, itself rounded to bfloat16, may be from what is rounded: half its last place. */
#define HALF_PLACE 0x1p-8f
/* More than what is lost where numbers are too small to be held. */
#define TINY 1e-30f

/* More than the norms of a row and a column give, multiplied, wherever no product can overflow. */
#define HUGE_PRODUCT 1e38f

/* The largest norm of a column; infinite where something of a column is NaN or too large. */
INLINE float largest_norm(const screen *of) {
    float largest = 0;
    for (int64_t i = 0; i < of->width; i++) {
        if (!(of->W_norms[i] <= FLT_MAX && of->W_errors[i] <= FLT_MAX && of->b[i] <= FLT_MAX)) return INFINITY;
        if (of->W_norms[i] > largest) largest = of->W_norms[i];
    }
    return largest;
}

/* Whether nothing of a row can be NaN, or too large for its brackets. */
INLINE int can_screen(const screen *of, int64_t row, float largest_norm) {
    return (of->norms[row] + of->errors[row]) * largest_norm < HUGE_PRODUCT;
}

/* Between which numbers the entries of a row lie; what is minus infinity stays so. There is room for a copy of the row. */
INLINE void brackets(const screen *of, int64_t row, uint16_t *copy, float *low, float *high) {
    const int64_t padded = rounded_up(of->width);
    const float norm = of->norms[row], error = of->errors[row], *weights = weights_of(of, row);
    const uint16_t *products = of->products + row * of->width;
    if (padded > of->width) products = memcpy(copy, products, sizeof(uint16_t) * of->width);
    for (int64_t i = 0; i < padded; i += LANES) {
        const floats product = (floats)(__builtin_convertvector(*(const halves *)(products + i), words) << 16);
        const floats base = load(of->b + i);
        const floats unsure = error * load(of->W_norms + i) + (norm + error) * load(of->W_errors + i) + TINY;
        const floats longer = product * (1 + HALF_PLACE), shorter = product * (1 - HALF_PLACE);
        const ints below = product < 0;
        const floats least = (floats)(((ints)longer & below) | ((ints)shorter & ~below));
        const floats most = (floats)(((ints)shorter & below) | ((ints)longer & ~below));
        floats lower = least + (base - unsure), upper = most + (base + unsure);
        if (weights) {
            /* Rounding keeps the order of numbers: what was between these two still is once all are multiplied. */
            const floats weight = load(weights + i), one = lower * weight, other = upper * weight;
            const ints swapped = weight < 0, closed = weight == 0, infinite = (ints)(floats)(weight * 0 - INFINITY);
            lower = (floats)(((ints)other & swapped) | ((ints)one & ~swapped));
            upper = (floats)(((ints)one & swapped) | ((ints)other & ~swapped));
            lower = (floats)((infinite & closed) | ((ints)lower & ~closed));
            upper = (floats)((infinite & closed) | ((ints)upper & ~closed));
        }
        *(floats *)(low + i) = lower;
        *(floats *)(high + i) = upper;
    }
}

/* Compute n entries of a row in full; chosen says which of the columns they are, and where in found they go. Returns whether
   there is a NaN. */
INLINE int compute(const screen *of, int64_t row, const int32_t *chosen, int64_t n, const int32_t *columns, float *found) {
    const float *weights = weights_of(of, row);
    int nan = 0;
    for (int64_t i = 0; i < n; i += TOGETHER) {
        const float *rows[TOGETHER];
        float dots[TOGETHER];
        for (int64_t j = 0; j < TOGETHER; j++) {
            const int64_t column = columns[chosen[i + j < n ? i + j : n - 1]];
            rows[j] = of->W + (of->names ? of->names[column] : column) * of->d;
        }
        dots_of(TOGETHER, of->d, rows, of->x + row * of->d, dots);
        for (int64_t j = 0; j < TOGETHER && i + j < n; j++) {
            const int32_t place = chosen[i + j];
            found[place] = (dots[j] + of->b[columns[place]]) * (weights ? weights[columns[place]] : 1);
            nan |= found[place] != found[place];
        }
    }
    return nan;
}

/* scansion_screened_top_k for rows from first to last (exclusive). */
static int64_t screened_top_k(int64_t first, int64_t last, int64_t k, const screen *of, int64_t *places, int32_t *values,
                              int64_t *counts, int64_t *n_full) {
    const ints powers = POWERS;
    const int64_t padded = rounded_up(of->width), wanted = rounded_up(4 * k);
    const int64_t n_groups = padded < 2 * wanted ? padded : wanted;
    int32_t *scratch = calloc(n_groups + 6 * padded, sizeof(int32_t));
    if (!scratch) return 2;
    int32_t *maxima = scratch, *low = maxima + n_groups, *high = low + padded, *found = high + padded;
    int32_t *columns = found + padded, *chosen = columns + padded;
    uint16_t *copy = (uint16_t *)(chosen + padded);
    const float largest = largest_norm(of);
    int64_t status = 0;
    for (int64_t row = first; row < last; row++) {
        status |= !can_screen(of, row, largest);
        if (status) break;
        brackets(of, row, copy, (float *)low, (float *)high);
        maxima_of_groups(low, padded, n_groups, maxima);
        /* At least k entries are sure to reach this, if so many are sure to be above 0. Those that cannot are out. */
        int32_t bound = bound_of(maxima, n_groups, k, k / 8, LEAST);
        int64_t n_found = 0, n_sure = 0, n_more = 0;
        for (int64_t i = 0; i < padded; i += LANES) {
            uint32_t reached = sum_of_ints((load_bits(high + i) >= bound) & powers);
            for (; reached; reached &= reached - 1) {
                const int64_t column = i + __builtin_ctz(reached);
                found[n_found] = low[column];
                columns[n_found++] = column;
            }
        }
        if (n_found > k) {
            const int64_t up = rounded_up(n_found);
            for (int64_t i = n_found; i < up; i++) found[i] = 0;
            bound = bound_of(found, up, k, 0, bound);
        }
        /* What those that are sure to reach it are in full rules out more of the others. */
        for (int64_t i = 0; i < n_found; i++)
            if (found[i] >= bound) chosen[n_sure++] = i;
        status |= compute(of, row, chosen, n_sure, columns, (float *)found);
        int32_t least = INFINITE;
        for (int64_t i = 0; i < n_sure; i++)
            if (found[chosen[i]] < least) least = found[chosen[i]];
        if (n_sure >= k && least > bound) bound = least;
        for (int64_t i = 0, next = 0; i < n_found; i++)
            if (next < n_sure && chosen[next] == i)
                next++;
            else if (high[columns[i]] >= bound)
                chosen[n_sure + n_more++] = i;
            else
                found[i] = 0;
        status |= compute(of, row, chosen + n_sure, n_more, columns, (float *)found);
        counts[row] = keep(found, columns, n_found, k, LEAST, of->names, places + row * k, values + row * k);
        n_full[row] = n_sure + n_more;
    }
    free(scratch);
    return status;
}

/* scansion_top_k of what is screened; n_full says how many entries of each row were computed in full. */
int64_t EXPORT(screened_top_k)(int64_t n_threads, int64_t n_rows, int64_t k, const screen *of, int64_t *places,
                               int32_t *values, int64_t *counts, int64_t *n_full) {
    int64_t status = 0;
#pragma omp parallel num_threads(n_threads) reduction(| : status)
    status |= screened_top_k(MINE(n_rows), k, of, places, values, counts, n_full);
    return status;
}

/* scansion_screened_above for rows from first to last (exclusive). */
static int64_t screened_above(int64_t first, int64_t last, const screen *of, const float *floor, const int64_t *offsets,
                              int64_t *places, float *values, int64_t *counts) {
    const ints powers = POWERS;
    const int64_t padded = rounded_up(of->width);
    float *scratch = calloc(6 * padded, sizeof(float));
    if (!scratch) return 2;
    float *low = scratch, *high = low + padded, *found = high + padded;
    int32_t *columns = (int32_t *)(found + padded), *chosen = columns + padded;
    uint16_t *copy = (uint16_t *)(chosen + padded);
    const float largest = largest_norm(of);
    int64_t status = 0;
    for (int64_t i = 0; i < padded; i++) chosen[i] = i;
    for (int64_t row = first; row < last; row++) {
        int64_t n_found = 0;
        status |= !can_screen(of, row, largest);
        if (status) break;
        brackets(of, row, copy, low, high);
        for (int64_t i = 0; i < padded; i += LANES) {
            uint32_t reached = sum_of_ints((load(high + i) > *floor) & powers);
            for (; reached; reached &= reached - 1) columns[n_found++] = i + __builtin_ctz(reached);
        }
        counts[row] = n_found;
        if (!offsets) continue;
        status |= compute(of, row, chosen, n_found, columns, found);
        for (int64_t i = 0; i < n_found; i++) {
            places[offsets[row] + i] = of->names ? of->names[columns[i]] : columns[i];
            values[offsets[row] + i] = found[i];
        }
    }
    free(scratch);
    return status;
}

/* Entries of which all that exceed the floor are some, in the order of the row, computed in full: row i has counts[i], which go to
   places[offsets[i]] and after. They are only counted where offsets is NULL. Returns what scansion_top_k does. */
int64_t EXPORT(screened_above)(int64_t n_threads, int64_t n_rows, const screen *of, const float *floor, const int64_t *offsets,
                               int64_t *places, float *values, int64_t *counts) {
    int64_t status = 0;
#pragma omp parallel num_threads(n_threads) reduction(| : status)
    status |= screened_above(MINE(n_rows), of, floor, offsets, places, values, counts);
    return status;
}
