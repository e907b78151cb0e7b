// A client whose TLS is inside of it, linked statically and stripped: nothing says where its functions are.
// usage: unknown ADDRESS PORT NAME
#include "common.h"
#include <arpa/inet.h>
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>

static int connected(const char *address, int port) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int is_ipv4 = inet_pton(AF_INET, address, &in.sin_addr) == 1;
    CHECK(is_ipv4 || inet_pton(AF_INET6, address, &in6.sin6_addr) == 1);
    int fd = socket(is_ipv4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    if (is_ipv4)
        CHECK(connect(fd, (struct sockaddr *)&in, sizeof in) == 0);
    else
        CHECK(connect(fd, (struct sockaddr *)&in6, sizeof in6) == 0);
    return fd;
}

int main(int argc, char **argv) {
    prepare();
    CHECK(argc == 4);
    static mbedtls_entropy_context entropy;
    static mbedtls_ctr_drbg_context random_source;
    static mbedtls_ssl_config config;
    static mbedtls_ssl_context ssl;
    mbedtls_net_context net = {.fd = connected(argv[1], atoi(argv[2]))};
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&random_source);
    CHECK(mbedtls_ctr_drbg_seed(&random_source, mbedtls_entropy_func, &entropy, NULL, 0) == 0);
    mbedtls_ssl_config_init(&config);
    CHECK(mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
                                      MBEDTLS_SSL_PRESET_DEFAULT) == 0);
    mbedtls_ssl_conf_authmode(&config, MBEDTLS_SSL_VERIFY_NONE);
    mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random_source);
    mbedtls_ssl_init(&ssl);
    CHECK(mbedtls_ssl_setup(&ssl, &config) == 0);
    CHECK(mbedtls_ssl_set_hostname(&ssl, argv[3]) == 0);
    mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, mbedtls_net_recv, NULL);
    CHECK(mbedtls_ssl_handshake(&ssl) == 0);
    static const char request[] = "GET /bytes/9 HTTP/1.1\r\nHost: x\r\n\r\n";
    CHECK(mbedtls_ssl_write(&ssl, (const unsigned char *)request, sizeof request - 1) == sizeof request - 1);
    unsigned char answer[4096];
    CHECK(mbedtls_ssl_read(&ssl, answer, sizeof answer) > 0);
    return 0;
}
