/* The C part for x86 processors with AVX-512. */

#if defined(__x86_64__) && defined(__GNUC__)
#include "system.h"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif
#define LANES 16
#define SUFFIX avx512
#include "every.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
