/* The implementation with TLS, where the headers of OpenSSL are there. */
#ifdef __has_include
#if __has_include(<openssl/ssl.h>)
#define TORNADO_OPENSSL
#endif
#endif
#define TORNADO_IMPLEMENTATION
#include "../../tornado.h"
