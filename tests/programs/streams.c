// Many connections at once, each in the middle of a long request: what an agent keeps of all of them.
// usage: streams COUNT BYTES   of each connection; ends with all of them when the file `end` is there
#include "tls.h"

#define PIECE 8192

int main(int argc, char **argv) {
    prepare();
    CHECK(argc == 3);
    int count = atoi(argv[1]);
    size_t size = strtoul(argv[2], NULL, 10);
    struct pair *pairs = calloc(count, sizeof *pairs);
    CHECK(pairs);
    SSL_CTX *client = client_context(), *server = server_context();
    char head[200], got[200], end[512];
    static char body[PIECE], back[PIECE];
    memset(body, 'b', sizeof body);
    for (int i = 0; i < count; i++) {
        pairs[i] = pair_in_memory(client, server);
        pair_handshake(&pairs[i]);
        int length = snprintf(head, sizeof head, "POST /%d HTTP/1.1\r\nhost: x\r\ncontent-length: %zu\r\n\r\n", i, size);
        TLS_CHECK(SSL_write(pairs[i].client, head, length) == length);
        TLS_CHECK(SSL_read(pairs[i].server, got, sizeof got) == length);
    }
    CHECK(snprintf(end, sizeof end, "%s/streams", setting("E2E_DIR", ".")) < (int)sizeof end);
    for (size_t sent = 0; sent < size; sent += PIECE)
        for (int i = 0; i < count; i++) {
            int length = size - sent < PIECE ? (int)(size - sent) : PIECE;
            TLS_CHECK(SSL_write(pairs[i].client, body, length) == length);
            TLS_CHECK(SSL_read(pairs[i].server, back, sizeof back) == length);
            // Slow enough to be read: what is lost takes no memory.
            if (i % 50 == 0)
                usleep(5000);
        }
    meet(end);
    const char answer[] = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for (int i = 0; i < count; i++) {
        int length = sizeof answer - 1;
        TLS_CHECK(SSL_write(pairs[i].server, answer, length) == length);
        TLS_CHECK(SSL_read(pairs[i].client, got, sizeof got) == length);
        pair_free(&pairs[i]);
    }
    return 0;
}
