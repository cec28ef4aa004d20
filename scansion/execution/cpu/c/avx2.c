/* The C part for x86 processors with AVX2 and FMA. */

#if defined(__x86_64__) && defined(__GNUC__)
#include "system.h"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define LANES 8
#define SUFFIX avx2
#include "every.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
