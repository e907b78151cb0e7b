// OpenSSL for the C programs: contexts, and two ends in one process.
#pragma once
#include "common.h"
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#define TLS_CHECK(condition)                                                                       \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            ERR_print_errors_fp(stderr);                                                           \
            _exit(91);                                                                             \
        }                                                                                          \
    } while (0)

static inline SSL_CTX *client_context(void) {
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    TLS_CHECK(context);
    return context;
}

static inline SSL_CTX *server_context(void) {
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    TLS_CHECK(context);
    TLS_CHECK(SSL_CTX_use_certificate_file(context, setting("E2E_CERT", "cert.pem"), SSL_FILETYPE_PEM) == 1);
    TLS_CHECK(SSL_CTX_use_PrivateKey_file(context, setting("E2E_KEY", "key.pem"), SSL_FILETYPE_PEM) == 1);
    return context;
}

// Two ends of one connection, joined in memory, each with its truth.
struct pair {
    SSL *client, *server;
    struct truth client_truth, server_truth;
};

static inline struct pair pair_in_memory(SSL_CTX *client, SSL_CTX *server) {
    struct pair pair = {.client = SSL_new(client), .server = SSL_new(server)};
    TLS_CHECK(pair.client && pair.server);
    BIO *up = BIO_new(BIO_s_mem()), *down = BIO_new(BIO_s_mem());
    TLS_CHECK(up && down);
    BIO_set_mem_eof_return(up, -1);
    BIO_set_mem_eof_return(down, -1);
    TLS_CHECK(BIO_up_ref(up) && BIO_up_ref(down));
    SSL_set_bio(pair.client, down, up);
    SSL_set_bio(pair.server, up, down);
    SSL_set_connect_state(pair.client);
    SSL_set_accept_state(pair.server);
    return pair;
}

static inline struct pair pair_new(SSL_CTX *client, SSL_CTX *server, int number) {
    struct pair pair = pair_in_memory(client, server);
    pair.client_truth = truth_open("client", number);
    pair.server_truth = truth_open("server", number);
    return pair;
}

static inline void pair_handshake(struct pair *pair) {
    for (int turn = 0; turn < 20; turn++) {
        int client = SSL_do_handshake(pair->client), server = SSL_do_handshake(pair->server);
        if (client == 1 && server == 1)
            return;
    }
    TLS_CHECK(!"the handshake ends");
}

static inline void pair_free(struct pair *pair) {
    SSL_free(pair->client);
    SSL_free(pair->server);
}

static inline void write_all(SSL *ssl, struct truth *truth, const void *data, size_t size) {
    size_t written = 0;
    TLS_CHECK(SSL_write_ex(ssl, data, size, &written) == 1 && written == size);
    note(truth->sent, data, written);
}

static inline void read_all(SSL *ssl, struct truth *truth, size_t size) {
    char buffer[20000];
    while (size) {
        size_t want = size < sizeof buffer ? size : sizeof buffer, got = 0;
        TLS_CHECK(SSL_read_ex(ssl, buffer, want, &got) == 1);
        note(truth->received, buffer, got);
        size -= got;
    }
}
