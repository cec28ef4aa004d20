/* What rounding to bfloat16 and to int16 have in common. */

#ifndef SCANSION_ROUNDING_H
#define SCANSION_ROUNDING_H

#include "lanes.h"

typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* A bfloat16 is the upper half of a float. Of two equally near, the even one is taken. */
INLINE words nearest(words bits) { return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u; }

INLINE halves upper_halves(words bits) { return __builtin_convertvector(bits >> 16, halves); }

/* More than the norm of numbers whose squares are too small to be held. */
#define UNDERFLOW 1e-17f

/* The numbers of a row from j on; zeros after its end. */
INLINE floats load_up_to(const float *row, int64_t j, int64_t d) {
    if (j + LANES <= d) return load(row + j);
    floats some = {0};
    memcpy(&some, row + j, sizeof(float) * (d - j));
    return some;
}

INLINE float norm_of(floats squares) { return sqrtf(sum_of_floats(squares)) + UNDERFLOW; }

#endif
