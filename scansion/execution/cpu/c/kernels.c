/* The innermost loop of products in int16, by the widest instructions that a processor has for it. */

#include <string.h>

#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
/* Older compilers do not know AVX-VNNI. */
#if !defined(__clang__) && __GNUC__ >= 11
#define AVX_VNNI 1
#endif
#endif

#define PLAIN_ROWS 4

static void plain(int64_t n_pairs, const int32_t *x, const int32_t *W, int32_t *sums) {
    memset(sums, 0, sizeof(int32_t) * PLAIN_ROWS * COLUMNS);
    for (int64_t pair = 0; pair < n_pairs; pair++)
        for (int64_t i = 0; i < PLAIN_ROWS; i++) {
            int16_t of_x[2], of_W[2 * COLUMNS];
            memcpy(of_x, x + pair * PLAIN_ROWS + i, sizeof(of_x));
            memcpy(of_W, W + pair * COLUMNS, sizeof(of_W));
            for (int64_t j = 0; j < COLUMNS; j++) sums[i * COLUMNS + j] += of_x[0] * of_W[2 * j] + of_x[1] * of_W[2 * j + 1];
        }
}

#ifdef X86
/* The sums stay in registers only if the compiler unrolls these loops before it assigns registers. */
#define UNROLLED(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)
/* A kernel whose sums for a row are in PARTS registers of type VECTOR, of which PREFIX and SUFFIX name the operations. */
#define KERNEL(NAME, TARGET, ROWS, PARTS, VECTOR, PREFIX, SUFFIX, ADD)                                                      \
    __attribute__((target(TARGET))) static void NAME(int64_t n_pairs, const int32_t *x, const int32_t *W, int32_t *sums) {  \
        VECTOR total[ROWS][PARTS], of_W[PARTS];                                                                             \
        UNROLLED(i, ROWS) UNROLLED(j, PARTS) total[i][j] = PREFIX##_setzero_##SUFFIX();                                     \
        for (int64_t pair = 0; pair < n_pairs; pair++) {                                                                    \
            UNROLLED(j, PARTS) of_W[j] = PREFIX##_loadu_##SUFFIX((const void *)(W + pair * COLUMNS + j * COLUMNS / PARTS)); \
            UNROLLED(i, ROWS) {                                                                                             \
                const VECTOR of_x = PREFIX##_set1_epi32(x[pair * ROWS + i]);                                                \
                UNROLLED(j, PARTS) total[i][j] = ADD(total[i][j], of_x, of_W[j]);                                           \
            }                                                                                                               \
        }                                                                                                                   \
        UNROLLED(i, ROWS) UNROLLED(j, PARTS)                                                                                \
            PREFIX##_storeu_##SUFFIX((void *)(sums + i * COLUMNS + j * COLUMNS / PARTS), total[i][j]);                      \
    }
#define MULTIPLY_AND_ADD(total, one, other) _mm256_add_epi32(total, _mm256_madd_epi16(one, other))
KERNEL(by_avx2, "avx2", 4, 2, __m256i, _mm256, si256, MULTIPLY_AND_ADD)
KERNEL(by_avx512_vnni, "avx512f,avx512vnni", 14, 1, __m512i, _mm512, si512, _mm512_dpwssd_epi32)
#ifdef AVX_VNNI
KERNEL(by_avx_vnni, "avx2,avxvnni", 5, 2, __m256i, _mm256, si256, _mm256_dpwssd_avx_epi32)
#endif
#endif

/* Slowest first; in the order of KERNELS in native_screen.py. NULL where this build lacks one. */
const kernel scansion_kernels[] = {
    {PLAIN_ROWS, plain},
#ifdef X86
    {4, by_avx2},
#ifdef AVX_VNNI
    {5, by_avx_vnni},
#else
    {0, NULL},
#endif
    {14, by_avx512_vnni},
#endif
};
