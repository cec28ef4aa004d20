/* Products of a few rows in int16; see integers.c. */

#ifndef SCANSION_KERNELS_H
#define SCANSION_KERNELS_H

#include <stdint.h>

/* Rows of W that a kernel multiplies with, and rows of x, at most. */
#define COLUMNS 16
#define MOST_ROWS 14

/* A kernel multiplies n_rows rows of x by COLUMNS rows of W, which are packed: of each row two numbers, then the next two of each.
   sums gets COLUMNS for each row of x. */
typedef struct {
    int64_t n_rows;
    void (*multiply)(int64_t n_pairs, const int32_t *x, const int32_t *W, int32_t *sums);
} kernel;

extern const kernel scansion_kernels[];

#endif
