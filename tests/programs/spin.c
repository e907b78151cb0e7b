// A program that asks a connection for bytes that are not there, without ever waiting, until somebody stops it: no
// plaintext, and as many traps as a CPU can make. Its probes are taken out meanwhile, and placed again.
#include "tls.h"

static void pass(SSL *from, SSL *to, const char *text) {
    char got[64];
    int size = (int)strlen(text);
    TLS_CHECK(SSL_write(from, text, size) == size);
    TLS_CHECK(SSL_read(to, got, sizeof got) == size && memcmp(got, text, size) == 0);
}

static void spin(SSL *ssl, const char *until) {
    char got[64];
    while (!exists(until))
        for (int turn = 0; turn < 1000; turn++)
            TLS_CHECK(SSL_read(ssl, got, sizeof got) == -1 && SSL_want_read(ssl));
}

int main(void) {
    prepare();
    char stop[512], again[512];
    const char *directory = setting("E2E_DIR", ".");
    CHECK(snprintf(stop, sizeof stop, "%s/stop", directory) < (int)sizeof stop);
    CHECK(snprintf(again, sizeof again, "%s/again", directory) < (int)sizeof again);
    struct pair pair = pair_in_memory(client_context(), server_context());
    pair_handshake(&pair);
    pass(pair.client, pair.server, "before\n");
    pass(pair.server, pair.client, "answer before\n");
    spin(pair.client, stop);
    pass(pair.client, pair.server, "unseen\n");
    pass(pair.server, pair.client, "unseen too\n");
    meet(again);
    pass(pair.client, pair.server, "after\n");
    pass(pair.server, pair.client, "answer after\n");
    pair_free(&pair);
    return 0;
}
