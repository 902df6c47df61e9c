/* What every other file of a program does, twice, as nested includes do. */
#include "../../tornado.h"
#include "../../tornado.h"

const char *version(void);
const char *version(void)
{
    return TORNADO_VERSION;
}
