/* All functions of which there is one version for each kind of processor. */

#include "integers.c"
#include "screening.c"
#include "selection.c"
#include "sums.c"
