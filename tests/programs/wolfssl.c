// Both ends of wolfSSL connections; writes may be partial.
#include "ends.h"
#include <wolfssl/options.h>
#include <wolfssl/ssl.h>

static WOLFSSL_CTX *contexts[2];

static size_t counted(struct end *end, int result) {
    if (result > 0)
        return result;
    int error = wolfSSL_get_error(end->tls, result);
    if (error == WOLFSSL_ERROR_WANT_READ || error == WOLFSSL_ERROR_WANT_WRITE)
        return 0;
    fprintf(stderr, "wolfSSL: %d\n", error);
    _exit(91);
}

static void open_end(struct end *end) {
    end->tls = wolfSSL_new(contexts[end->is_server]);
    CHECK(end->tls && wolfSSL_set_fd(end->tls, end->fd) == WOLFSSL_SUCCESS);
}

static int shake(struct end *end) {
    return counted(end, end->is_server ? wolfSSL_accept(end->tls) : wolfSSL_connect(end->tls)) > 0;
}

// Two ways to write and to read, one of which calls the other.
static size_t put(struct end *end, const void *data, size_t size) {
    return counted(end, size % 2 ? wolfSSL_write(end->tls, data, (int)size)
                                 : wolfSSL_send(end->tls, data, (int)size, MSG_NOSIGNAL));
}

static size_t get(struct end *end, void *data, size_t size) {
    return counted(end, size % 2 ? wolfSSL_read(end->tls, data, (int)size)
                                 : wolfSSL_recv(end->tls, data, (int)size, 0));
}

static size_t look(struct end *end, void *data, size_t size) {
    return counted(end, wolfSSL_peek(end->tls, data, (int)size));
}

static void close_end(struct end *end) {
    wolfSSL_free(end->tls);
    close(end->fd);
}

int main(void) {
    prepare();
    CHECK(wolfSSL_Init() == WOLFSSL_SUCCESS);
    contexts[0] = wolfSSL_CTX_new(wolfTLS_client_method());
    contexts[1] = wolfSSL_CTX_new(wolfTLS_server_method());
    CHECK(contexts[0] && contexts[1]);
    wolfSSL_CTX_set_verify(contexts[0], WOLFSSL_VERIFY_NONE, NULL);
    CHECK(wolfSSL_CTX_use_certificate_file(contexts[1], setting("E2E_CERT", "cert.pem"), WOLFSSL_FILETYPE_PEM) ==
          WOLFSSL_SUCCESS);
    CHECK(wolfSSL_CTX_use_PrivateKey_file(contexts[1], setting("E2E_KEY", "key.pem"), WOLFSSL_FILETYPE_PEM) ==
          WOLFSSL_SUCCESS);
    for (int role = 0; role < 2; role++)
        wolfSSL_CTX_set_mode(contexts[role], SSL_MODE_ENABLE_PARTIAL_WRITE);
    converse_all();
    return 0;
}
