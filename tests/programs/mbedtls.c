// Both ends of Mbed TLS connections; a write is never longer than a record.
#include "ends.h"
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>

struct state {
    mbedtls_ssl_context ssl;
    mbedtls_net_context net;
};

static mbedtls_ssl_config configs[2];
static mbedtls_ctr_drbg_context random_source;

static size_t counted(int result) {
    if (result > 0)
        return result;
    if (result == MBEDTLS_ERR_SSL_WANT_READ || result == MBEDTLS_ERR_SSL_WANT_WRITE)
        return 0;
    fprintf(stderr, "Mbed TLS: -0x%x\n", -result);
    _exit(91);
}

static void open_end(struct end *end) {
    struct state *state = calloc(1, sizeof *state);
    CHECK(state);
    mbedtls_ssl_init(&state->ssl);
    state->net.fd = end->fd;
    CHECK(mbedtls_ssl_setup(&state->ssl, &configs[end->is_server]) == 0);
    mbedtls_ssl_set_bio(&state->ssl, &state->net, mbedtls_net_send, mbedtls_net_recv, NULL);
    end->tls = state;
}

static int shake(struct end *end) {
    int result = mbedtls_ssl_handshake(end->tls);
    return result == 0 || counted(result);
}

static size_t put(struct end *end, const void *data, size_t size) {
    return counted(mbedtls_ssl_write(end->tls, data, size));
}

static size_t get(struct end *end, void *data, size_t size) {
    return counted(mbedtls_ssl_read(end->tls, data, size));
}

static size_t look(struct end *end, void *data, size_t size) {
    (void)end, (void)data, (void)size;
    return 0;
}

static void close_end(struct end *end) {
    mbedtls_ssl_free(end->tls);
    free(end->tls);
    close(end->fd);
}

int main(void) {
    prepare();
    static mbedtls_entropy_context entropy;
    static mbedtls_x509_crt certificate;
    static mbedtls_pk_context key;
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&random_source);
    mbedtls_x509_crt_init(&certificate);
    mbedtls_pk_init(&key);
    CHECK(mbedtls_ctr_drbg_seed(&random_source, mbedtls_entropy_func, &entropy, NULL, 0) == 0);
    CHECK(mbedtls_x509_crt_parse_file(&certificate, setting("E2E_CERT", "cert.pem")) == 0);
    CHECK(mbedtls_pk_parse_keyfile(&key, setting("E2E_KEY", "key.pem"), NULL) == 0);
    for (int role = 0; role < 2; role++) {
        mbedtls_ssl_config *config = &configs[role];
        mbedtls_ssl_config_init(config);
        CHECK(mbedtls_ssl_config_defaults(config, role ? MBEDTLS_SSL_IS_SERVER : MBEDTLS_SSL_IS_CLIENT,
                                          MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT) == 0);
        mbedtls_ssl_conf_authmode(config, MBEDTLS_SSL_VERIFY_NONE);
        mbedtls_ssl_conf_rng(config, mbedtls_ctr_drbg_random, &random_source);
    }
    CHECK(mbedtls_ssl_conf_own_cert(&configs[1], &certificate, &key) == 0);
    converse_all();
    return 0;
}
