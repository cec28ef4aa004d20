/* Headers of the compiler, which are read before it is told of a processor's instructions. */

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
