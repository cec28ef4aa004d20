/* The k largest of some numbers, by a bound that is searched for. */

#ifndef SCANSION_BOUNDS_H
#define SCANSION_BOUNDS_H

#include "lanes.h"

/* With these, a sum tells which lanes of a comparison hold. */
#define FOUR_POWERS(n) 1 << (n), 2 << (n), 4 << (n), 8 << (n)
#if LANES == 4
#define POWERS {FOUR_POWERS(0)}
#elif LANES == 8
#define POWERS {FOUR_POWERS(0), FOUR_POWERS(4)}
#else
#define POWERS {FOUR_POWERS(0), FOUR_POWERS(4), FOUR_POWERS(8), FOUR_POWERS(12)}
#endif

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

/* Write the names of the k largest of n numbers, and the numbers, or of all that reach the bound where these are fewer; returns how
   many. There is room for zeros up to the next multiple of LANES. The column stands for its name where names is NULL. */
INLINE int64_t keep(int32_t *found, const int32_t *columns, int64_t n, int64_t k, int32_t bound, const int64_t *names,
                    int64_t *places, int32_t *values) {
    int64_t tied = n, count = 0;
    if (n > k) {
        const int64_t up = rounded_up(n);
        for (int64_t i = n; i < up; i++) found[i] = 0;
        bound = bound_of(found, up, k, 0, bound);
        tied = k - how_many(found, up, bound + 1);
    }
    for (int64_t i = 0; i < n; i++) {
        if (found[i] < bound || (found[i] == bound && tied-- <= 0)) continue;
        places[count] = names ? names[columns[i]] : columns[i];
        values[count++] = found[i];
    }
    return count;
}

#endif
