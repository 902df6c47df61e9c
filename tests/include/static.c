/* Every function static, hardly one used: no warning, no symbol for the linker. */
#define TORNADO_STATIC
#define TORNADO_IMPLEMENTATION
#include "../../tornado.h"

int main(void)
{
    return tornado_last_error()->code;
}
