/* The active entries of a batch: the largest of each row, or all above a floor. */

#include "bounds.h"

/* scansion_top_k for rows from first to last (exclusive). */
static int64_t top_k(int64_t first, int64_t last, const int32_t *x, int64_t width, int64_t k, const int64_t *ends,
                     const int64_t *const *names, int64_t *places, int32_t *values, int64_t *counts) {
    const ints powers = POWERS;
    /* The k-th largest of the maxima of 4 k groups is reached by about 1.15 k entries of the row. */
    const int64_t padded = rounded_up(width), wanted = rounded_up(4 * k), n_groups = padded < 2 * wanted ? padded : wanted;
    int32_t *scratch = malloc(sizeof(int32_t) * (n_groups + 3 * padded));
    if (!scratch) return 2;
    int32_t *maxima = scratch, *copy = scratch + n_groups, *found = copy + padded, *columns = found + padded;
    for (int64_t i = width; i < padded; i++) copy[i] = INT32_MIN; /* minus 0, which is not above 0 */
    int64_t status = 0, part = 0;
    for (int64_t row = first; row < last; row++) {
        const int32_t *all = x + row * width;
        if (padded > width) all = memcpy(copy, all, sizeof(int32_t) * width);
        while (row >= ends[part]) part++;
        status = maxima_of_groups(all, padded, n_groups, maxima);
        if (status) break; /* more than k NaNs would all be written */
        int32_t bound = bound_of(maxima, n_groups, k, k / 8, LEAST);
        int64_t n_found = 0;
        for (int64_t i = 0; i < padded; i += LANES) {
            uint32_t reached = sum_of_ints((load_bits(all + i) >= bound) & powers);
            for (; reached; reached &= reached - 1) {
                int64_t column = i + __builtin_ctz(reached);
                found[n_found] = all[column];
                columns[n_found++] = column;
            }
        }
        counts[row] = keep(found, columns, n_found, k, bound, names[part], places + row * k, values + row * k);
    }
    free(scratch);
    return status;
}

/* The k largest entries above 0 of each row, or all of them where there are fewer, in the order of the row.

   Row i writes places[i * k] and after, as many as counts[i] says: the name of the column, of names[part] for rows up to
   ends[part] (exclusive), or the column itself where that is NULL; values likewise. Returns 0; 1 where there is a NaN; 2 where
   there is no memory. */
int64_t EXPORT(top_k)(int64_t n_threads, int64_t n_rows, int64_t width, int64_t k, const int32_t *x, const int64_t *ends,
                      const int64_t *const *names, int64_t *places, int32_t *values, int64_t *counts) {
    int64_t status = 0;
#pragma omp parallel num_threads(n_threads) reduction(| : status)
    status |= top_k(MINE(n_rows), x, width, k, ends, names, places, values, counts);
    return status;
}

static void count_above(int64_t first, int64_t last, int64_t width, const float *x, const float *floor, int64_t *counts) {
    for (int64_t row = first; row < last; row++) {
        const float *all = x + row * width;
        ints found = {0};
        int64_t i = 0, rest = 0;
        for (; i + LANES <= width; i += LANES) found -= load(all + i) > *floor;
        for (; i < width; i++) rest += all[i] > *floor;
        counts[row] = rest + sum_of_ints(found);
    }
}

/* How many entries of each row exceed the floor. */
void EXPORT(count_above)(int64_t n_threads, int64_t n_rows, int64_t width, const float *x, const float *floor,
                         int64_t *counts) {
#pragma omp parallel num_threads(n_threads)
    count_above(MINE(n_rows), width, x, floor, counts);
}

static void take_above(int64_t first, int64_t last, int64_t width, const float *x, const float *floor, const int64_t *offsets,
                       const int64_t *ends, const int64_t *const *names, int64_t *places, float *values) {
    const ints powers = POWERS;
    int64_t part = 0;
    for (int64_t row = first; row < last; row++) {
        const float *all = x + row * width;
        int64_t next = offsets[row], i = 0;
        while (row >= ends[part]) part++;
        for (; i < width; i += LANES) {
            uint32_t exceeding = 0;
            if (i + LANES <= width)
                exceeding = sum_of_ints((load(all + i) > *floor) & powers);
            else
                for (int64_t j = i; j < width; j++) exceeding |= (uint32_t)(all[j] > *floor) << (j - i);
            for (; exceeding; exceeding &= exceeding - 1) {
                const int64_t column = i + __builtin_ctz(exceeding);
                places[next] = names[part] ? names[part][column] : column;
                values[next++] = all[column];
            }
        }
    }
}

/* Those entries, row by row, in the order of the row; row i has offsets[i] to offsets[i + 1]. Names as in scansion_top_k. */
void EXPORT(take_above)(int64_t n_threads, int64_t n_rows, int64_t width, const float *x, const float *floor,
                        const int64_t *offsets, const int64_t *ends, const int64_t *const *names, int64_t *places,
                        float *values) {
#pragma omp parallel num_threads(n_threads)
    take_above(MINE(n_rows), width, x, floor, offsets, ends, names, places, values);
}
