/* What the C part of the sparse step has in common: vectors, and which rows a thread deals with.

   All of it is called through ctypes. Matrices are contiguous, row by row; whole numbers are of 64 bits. Work is
   cut among threads where no two write the same row, so that results do not depend on how many there are. The threads are
   OpenMP's, which torch has loaded already: others would wait for cores on which its own are waiting for work. */

#ifndef SCANSION_LANES_H
#define SCANSION_LANES_H

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One build serves old and new processors: the C library picks the widest form as the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

/* What this thread does of n rows or columns, as two arguments: the first, and the one after the last. */
#define MINE(n) ((n) * omp_get_thread_num() / omp_get_num_threads()), ((n) * (omp_get_thread_num() + 1) / omp_get_num_threads())

#define LANES 16
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t eight __attribute__((vector_size(32)));
typedef int32_t four __attribute__((vector_size(16)));

INLINE floats load(const float *x) { return *(const floats *)x; }

INLINE int32_t sum_of_ints(ints x) {
    union { ints whole; eight half[2]; } halves = {x};
    union { eight whole; four half[2]; } quarters = {halves.half[0] + halves.half[1]};
    four sums = quarters.half[0] + quarters.half[1];
    return sums[0] + sums[1] + sums[2] + sums[3];
}

typedef float eight_floats __attribute__((vector_size(32)));
typedef float four_floats __attribute__((vector_size(16)));

INLINE float sum_of_floats(floats x) {
    union { floats whole; eight_floats half[2]; } halves = {x};
    union { eight_floats whole; four_floats half[2]; } quarters = {halves.half[0] + halves.half[1]};
    four_floats sums = quarters.half[0] + quarters.half[1];
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

/* Rows that are read at once, so that what is added to them, or they to, is read less often. */
#define TOGETHER 4

INLINE int64_t rounded_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

#endif
