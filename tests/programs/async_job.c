// SSL_MODE_ASYNC: jobs of two connections are paused inside their write BIO while a third one writes
// in between. A return probe on a function that runs inside such a job kills the process.
#include "tls.h"
#include <openssl/async.h>

static int pauses;

static long pause_on_write(BIO *bio, int operation, const char *data, size_t size, int argi, long argl, int result,
                           size_t *processed) {
    (void)bio, (void)data, (void)size, (void)argi, (void)argl, (void)processed;
    if (operation == BIO_CB_WRITE && ASYNC_get_current_job()) {
        pauses++;
        TLS_CHECK(ASYNC_pause_job() == 1);
    }
    return result;
}

int main(void) {
    prepare();
    TLS_CHECK(ASYNC_is_capable());
    SSL_CTX *client = client_context(), *server = server_context();
    struct pair pairs[3];
    for (int at = 0; at < 3; at++) {
        pairs[at] = pair_new(client, server, at);
        pair_handshake(&pairs[at]);
        if (at < 2) {
            BIO_set_callback_ex(SSL_get_wbio(pairs[at].client), pause_on_write);
            SSL_set_mode(pairs[at].client, SSL_MODE_ASYNC);
        }
    }
    static unsigned char data[3][10000];
    static const int sizes[3] = {10000, 1500, 100};
    for (int turn = 0; turn < 10; turn++) {
        for (int at = 0; at < 3; at++)
            fill(data[at], sizes[at], turn * 3 + at + 1);
        for (int at = 0; at < 2; at++) {
            int result = SSL_write(pairs[at].client, data[at], sizes[at]);
            TLS_CHECK(result == -1 && SSL_get_error(pairs[at].client, result) == SSL_ERROR_WANT_ASYNC);
        }
        write_all(pairs[2].client, &pairs[2].client_truth, data[2], sizes[2]);
        for (int at = 0; at < 2; at++) {
            int result;
            do
                result = SSL_write(pairs[at].client, data[at], sizes[at]);
            while (result == -1 && SSL_get_error(pairs[at].client, result) == SSL_ERROR_WANT_ASYNC);
            TLS_CHECK(result == sizes[at]);
            note(pairs[at].client_truth.sent, data[at], result);
        }
        for (int at = 0; at < 3; at++)
            read_all(pairs[at].server, &pairs[at].server_truth, sizes[at]);
    }
    CHECK(pauses >= 20);
    for (int at = 0; at < 3; at++)
        pair_free(&pairs[at]);
    return 0;
}
