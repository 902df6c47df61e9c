/* The public part in C++. */
#include "../../tornado.h"
#include <string>

std::string version();
std::string version()
{
    return TORNADO_VERSION;
}
