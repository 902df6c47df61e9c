/* Certificates, made by libcrypto when a test needs them, in a directory of the test's own. */
#ifndef TEST_CERTIFICATES_H
#define TEST_CERTIFICATES_H

#include "harness.h"

#ifdef TORNADO_OPENSSL
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char certificates_directory[64];

/* The path of a file in the directory; valid until eight more were asked for. */
static inline const char *certificate_path(const char *name)
{
    static char paths[8][400];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", certificates_directory, name);
    return path;
}

/* What a certificate says. The issuer is the name of one that was made before; NULL: it signs itself. */
typedef struct certificate {
    const char *name, *alt_names, *issuer;
    bool authority;
    long begins, ends; /* days from now; 0: yesterday and in ten days */
} certificate;

static inline FILE *certificate_file(const char *name, const char *kind, const char *mode)
{
    char both[80];
    snprintf(both, sizeof both, "%s.%s", name, kind);
    FILE *file = fopen(certificate_path(both), mode);
    CHECK(file != NULL);
    return file;
}

static inline EVP_PKEY *certificate_new_key(void)
{
    EVP_PKEY *key = NULL;
    EVP_PKEY_CTX *making = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, NULL);
    CHECK(making && EVP_PKEY_keygen_init(making) == 1 &&
          EVP_PKEY_CTX_set_ec_paramgen_curve_nid(making, NID_X9_62_prime256v1) == 1 &&
          EVP_PKEY_keygen(making, &key) == 1);
    EVP_PKEY_CTX_free(making);
    return key;
}

static inline void certificate_extend(X509 *x509, int nid, const char *value)
{
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, nid, (char *)(uintptr_t)value);
    CHECK(extension && X509_add_ext(x509, extension, -1) == 1);
    X509_EXTENSION_free(extension);
}

/* Makes NAME.pem, with the certificate and its issuer's behind it, and NAME.key. */
static inline void certificate_make(certificate what)
{
    static long serial = 4096;
    if (!*certificates_directory) {
        strcpy(certificates_directory, "/tmp/tornado-tls-XXXXXX");
        CHECK(mkdtemp(certificates_directory) != NULL);
    }
    EVP_PKEY *key = certificate_new_key(), *issuer_key = key;
    X509 *x509 = X509_new(), *issuer = x509;
    if (what.issuer) {
        FILE *file = certificate_file(what.issuer, "pem", "r");
        issuer = PEM_read_X509(file, NULL, NULL, NULL);
        fclose(file);
        file = certificate_file(what.issuer, "key", "r");
        issuer_key = PEM_read_PrivateKey(file, NULL, NULL, NULL);
        fclose(file);
        CHECK(issuer && issuer_key);
    }
    X509_set_version(x509, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x509), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(x509), (what.begins ? what.begins : -1) * 86400);
    X509_gmtime_adj(X509_getm_notAfter(x509), (what.ends ? what.ends : 10) * 86400);
    X509_NAME *subject = X509_get_subject_name(x509);
    X509_NAME_add_entry_by_txt(subject, "O", MBSTRING_ASC, (const unsigned char *)"Tests", -1, -1, 0);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)what.name, -1, -1, 0);
    X509_set_issuer_name(x509, X509_get_subject_name(issuer));
    X509_set_pubkey(x509, key);
    if (what.authority)
        certificate_extend(x509, NID_basic_constraints, "critical,CA:TRUE");
    if (what.alt_names)
        certificate_extend(x509, NID_subject_alt_name, what.alt_names);
    CHECK(X509_sign(x509, issuer_key, EVP_sha256()) > 0);
    FILE *file = certificate_file(what.name, "pem", "w");
    CHECK(PEM_write_X509(file, x509) == 1);
    if (what.issuer)
        CHECK(PEM_write_X509(file, issuer) == 1);
    fclose(file);
    file = certificate_file(what.name, "key", "w");
    CHECK(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL) == 1);
    fclose(file);
    if (what.issuer) {
        X509_free(issuer);
        EVP_PKEY_free(issuer_key);
    }
    X509_free(x509);
    EVP_PKEY_free(key);
}

/* An authority "root", and "server" by it, for localhost and 127.0.0.1. */
static inline void certificates_make(void)
{
    certificate_make((certificate){.name = "root", .authority = true});
    certificate_make((certificate){.name = "server", .issuer = "root", .alt_names = "DNS:localhost,IP:127.0.0.1"});
}

/* Removes what was made. */
static inline void certificates_remove(void)
{
    DIR *directory = *certificates_directory ? opendir(certificates_directory) : NULL;
    for (struct dirent *entry; directory && (entry = readdir(directory)) != NULL;)
        if (entry->d_name[0] != '.')
            unlink(certificate_path(entry->d_name));
    if (directory)
        closedir(directory);
    rmdir(certificates_directory);
    certificates_directory[0] = '\0';
}
#endif

#endif
