/* What the C part of the sparse step has in common: vectors, and which rows a thread deals with.

   All of it is called through ctypes. Matrices are contiguous, row by row; whole numbers are of 64 bits. Work is
   cut among threads where no two write the same row, so that results do not depend on how many there are. The threads are
   OpenMP's, which torch has loaded already: others would wait for cores on which its own are waiting for work.

   any.c, avx2.c and avx512.c each build all of it, with vectors as wide as their processors' registers: a comparison of wider
   ones is done number by number by some compilers. They define LANES, the numbers in a vector, and SUFFIX, which is added to the
   names of functions; native.py takes those that are fastest on the processor. */

#ifndef SCANSION_LANES_H
#define SCANSION_LANES_H

#include "system.h"

#define JOINED(name, suffix) scansion_##name##_##suffix
#define NAMED(name, suffix) JOINED(name, suffix)
#define EXPORT(name) NAMED(name, SUFFIX)
#define INLINE static inline __attribute__((always_inline))

/* What this thread does of n rows or columns, as two arguments: the first, and the one after the last. */
#define MINE(n) ((n) * omp_get_thread_num() / omp_get_num_threads()), ((n) * (omp_get_thread_num() + 1) / omp_get_num_threads())

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t four_ints __attribute__((vector_size(16)));
typedef float four_floats __attribute__((vector_size(16)));

INLINE floats load(const float *x) { return *(const floats *)x; }

INLINE ints load_bits(const int32_t *x) { return *(const ints *)x; }

INLINE int32_t sum_of_ints(ints x) {
    union { ints whole; four_ints parts[LANES / 4]; } of = {x};
    for (int n = LANES / 8; n; n /= 2)
        for (int i = 0; i < n; i++) of.parts[i] += of.parts[i + n];
    return of.parts[0][0] + of.parts[0][1] + of.parts[0][2] + of.parts[0][3];
}

INLINE float sum_of_floats(floats x) {
    union { floats whole; four_floats parts[LANES / 4]; } of = {x};
    for (int n = LANES / 8; n; n /= 2)
        for (int i = 0; i < n; i++) of.parts[i] += of.parts[i + n];
    return (of.parts[0][0] + of.parts[0][2]) + (of.parts[0][1] + of.parts[0][3]);
}

/* Rows that are read at once, so that what is added to them, or they to, is read less often. */
#define TOGETHER 4

INLINE int64_t rounded_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

#endif
