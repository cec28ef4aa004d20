/* What there is one version of: which instructions this processor has, and the version of the C part. */

#include <stdint.h>

/* To be raised with every change of what a function of the C part takes or gives; native.py refuses a library of another version. */
#define VERSION 4

int64_t scansion_version(void) { return VERSION; }

/* One bit for each of INSTRUCTIONS in native.py that this processor has and this compiler knows. */
int64_t scansion_instructions(void) {
    int64_t bits = 0;
#if defined(__x86_64__) && defined(__GNUC__)
    bits |= (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) << 0;
    bits |= (__builtin_cpu_supports("avx512f") != 0) << 1;
    bits |= (__builtin_cpu_supports("avx512vnni") != 0) << 2;
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
    bits |= (__builtin_cpu_supports("avx512bf16") != 0) << 3;
#endif
#if !defined(__clang__) && __GNUC__ >= 11
    bits |= (__builtin_cpu_supports("avxvnni") != 0) << 4;
#endif
#endif
    return bits;
}
