/* The C part for every processor: four numbers fit the narrowest vectors in use. */

#define LANES 4
#define SUFFIX any
#include "every.h"
