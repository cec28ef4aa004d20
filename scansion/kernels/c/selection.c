/* The active entries of a batch: the largest of each row, or all above a floor. */

#include "lanes.h"

INLINE ints load_bits(const int32_t *x) { return *(const ints *)x; }

/* With these, a sum tells which lanes of a comparison hold. */
#define POWERS {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768}

/* Floats above 0 are in the order of their bits, below all of them those that are not, and NaN, with its sign taken
   away, above infinity. So the search below is one among whole numbers. */
#define INFINITE 0x7f800000
#define LEAST 1

INLINE ints is_nan(ints bits) { return (bits & 0x7fffffff) > INFINITE; }

/* How many of n numbers, a multiple of LANES, are at least the bound. */
INLINE int64_t how_many(const int32_t *x, int64_t n, int32_t bound) {
    ints found = {0};
    for (int64_t i = 0; i < n; i += LANES) found -= load_bits(x + i) >= bound;
    return sum_of_ints(found);
}

/* A bound, above 0, that at least k of n numbers reach and at most k + spare, unless there are ties; the least number
   above 0 where fewer than k reach that. */
INLINE int32_t bound_of(const int32_t *x, int64_t n, int64_t k, int64_t spare, int32_t low) {
    int32_t high = INFINITE + 1;
    int64_t reached = how_many(x, n, low);
    while (reached > k + spare && high - low > 1) {
        int32_t middle = low + (high - low) / 2;
        int64_t count = how_many(x, n, middle);
        if (count >= k) {
            low = middle;
            reached = count;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The largest of each group of numbers that are n_groups apart. Both counts are multiples of LANES. Returns whether there is
   a NaN. */
INLINE int maxima_of_groups(const int32_t *x, int64_t n, int64_t n_groups, int32_t *maxima) {
    ints nan = {0};
    for (int64_t group = 0; group < n_groups; group += LANES) {
        ints largest = load_bits(x + group);
        nan |= is_nan(largest);
        for (int64_t i = group + n_groups; i < n; i += n_groups) {
            ints some = load_bits(x + i), larger = some > largest;
            nan |= is_nan(some);
            largest = (some & larger) | (largest & ~larger);
        }
        *(ints *)(maxima + group) = largest;
    }
    return sum_of_ints(nan) != 0;
}

/* scansion_top_k for rows from first to last (exclusive). */
FOR_EACH_CPU
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
    for (int64_t row = first; row < last && !status; row++) {
        const int32_t *all = x + row * width;
        if (padded > width) all = memcpy(copy, all, sizeof(int32_t) * width);
        while (row >= ends[part]) part++;
        status = maxima_of_groups(all, padded, n_groups, maxima);
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
        int64_t tied = n_found;
        if (n_found > k) {
            int64_t up = rounded_up(n_found);
            for (int64_t i = n_found; i < up; i++) found[i] = 0;
            bound = bound_of(found, up, k, 0, bound);
            tied = k - how_many(found, up, bound + 1);
        }
        int64_t count = 0;
        for (int64_t i = 0; i < n_found; i++) {
            if (found[i] < bound || (found[i] == bound && tied-- <= 0)) continue;
            places[row * k + count] = names[part] ? names[part][columns[i]] : columns[i];
            values[row * k + count++] = found[i];
        }
        counts[row] = count;
    }
    free(scratch);
    return status;
}

/* The k largest entries above 0 of each row, or all of them where there are fewer, in the order of the row.

   Row i writes places[i * k] and after, as many as counts[i] says: the name of the column, of names[part] for rows up to
   ends[part] (exclusive), or the column itself where that is NULL; values likewise. Returns 0; 1 where there is a NaN; 2 where
   there is no memory. */
int64_t scansion_top_k(int64_t n_threads, int64_t n_rows, int64_t width, int64_t k, const int32_t *x, const int64_t *ends,
                       const int64_t *const *names, int64_t *places, int32_t *values, int64_t *counts) {
    int64_t status = 0;
#pragma omp parallel num_threads(n_threads) reduction(| : status)
    status |= top_k(MINE(n_rows), x, width, k, ends, names, places, values, counts);
    return status;
}

FOR_EACH_CPU
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
void scansion_count_above(int64_t n_threads, int64_t n_rows, int64_t width, const float *x, const float *floor,
                          int64_t *counts) {
#pragma omp parallel num_threads(n_threads)
    count_above(MINE(n_rows), width, x, floor, counts);
}

FOR_EACH_CPU
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
void scansion_take_above(int64_t n_threads, int64_t n_rows, int64_t width, const float *x, const float *floor,
                         const int64_t *offsets, const int64_t *ends, const int64_t *const *names, int64_t *places,
                         float *values) {
#pragma omp parallel num_threads(n_threads)
    take_above(MINE(n_rows), width, x, floor, offsets, ends, names, places, values);
}
