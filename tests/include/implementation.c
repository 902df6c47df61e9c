/* The implementation alone in its file. */
#define TORNADO_IMPLEMENTATION
#include "../../tornado.h"
