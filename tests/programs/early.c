// 0-RTT both ways, client and server in one process: SSL_write_early_data by the client, by the
// server before the handshake is over, and SSL_read_early_data, which ends with FINISH and no bytes.
#include "tls.h"

static void write_early(SSL *ssl, struct truth *truth, size_t size, uint64_t seed) {
    unsigned char data[8192];
    size_t written = 0;
    fill(data, size, seed);
    TLS_CHECK(SSL_write_early_data(ssl, data, size, &written) == 1 && written == size);
    note(truth->sent, data, written);
}

// Reads early data until there is no more to be had now; returns how it ended.
static int read_early(SSL *ssl, struct truth *truth) {
    unsigned char data[3000];
    for (;;) {
        size_t got = 0;
        int result = SSL_read_early_data(ssl, data, sizeof data, &got);
        if (result != SSL_READ_EARLY_DATA_SUCCESS)
            return result;
        note(truth->received, data, got);
    }
}

int main(void) {
    prepare();
    SSL_CTX *client = client_context(), *server = server_context();
    TLS_CHECK(SSL_CTX_set_max_early_data(server, 16384) == 1);
    SSL_CTX_set_options(server, SSL_OP_NO_ANTI_REPLAY);
    static unsigned char data[900];

    struct pair first = pair_new(client, server, 0);
    pair_handshake(&first);
    write_all(first.server, &first.server_truth, "ticket", 6);
    read_all(first.client, &first.client_truth, 6);
    SSL_SESSION *session = SSL_get1_session(first.client);
    TLS_CHECK(session && SSL_SESSION_get_max_early_data(session) > 0);
    SSL_shutdown(first.client);
    pair_free(&first);

    struct pair second = pair_new(client, server, 1);
    TLS_CHECK(SSL_set_session(second.client, session) == 1);
    write_early(second.client, &second.client_truth, 5000, 1);
    write_early(second.client, &second.client_truth, 3000, 2);
    TLS_CHECK(read_early(second.server, &second.server_truth) == SSL_READ_EARLY_DATA_ERROR);
    TLS_CHECK(SSL_get_early_data_status(second.server) == SSL_EARLY_DATA_ACCEPTED);
    write_early(second.server, &second.server_truth, 700, 3);
    TLS_CHECK(SSL_do_handshake(second.client) == 1);
    read_all(second.client, &second.client_truth, 700);
    TLS_CHECK(read_early(second.server, &second.server_truth) == SSL_READ_EARLY_DATA_FINISH);
    pair_handshake(&second);
    fill(data, sizeof data, 4);
    write_all(second.client, &second.client_truth, data, sizeof data);
    read_all(second.server, &second.server_truth, sizeof data);
    write_all(second.server, &second.server_truth, data, sizeof data);
    read_all(second.client, &second.client_truth, sizeof data);
    pair_free(&second);
    return 0;
}
