// Threads that write without a pause, each its own letter: who gets another's bytes is seen at once.
//
// usage: letters THREADS ROUNDS BASE [in-turn]
//
// Each thread writes ROUNDS times 1 MiB and 1 KiB of its letter ('A' is the first thread's), each in one
// SSL_write. Nobody reads: what is encrypted is thrown away, so the time goes into the calls. At the end it
// waits for BASE.go, having made BASE.here. In turn, each thread begins when the one before it has ended, gets
// the addresses of its objects, and writes the 1 KiB only.
#include "tls.h"
#include <pthread.h>

enum { MOST_THREADS = 60, LARGE = 1 << 20, SMALL = 1 << 10 };

static int rounds, in_turn;
static SSL_CTX *client, *server;

static void write_once(SSL *ssl, const char *data, size_t size) {
    size_t written = 0;
    TLS_CHECK(SSL_write_ex(ssl, data, size, &written) == 1 && written == size);
}

static void *run(void *argument) {
    int number = (int)(intptr_t)argument;
    struct pair pair = pair_new(client, server, number);
    pair_handshake(&pair);
    SSL_set0_wbio(pair.client, BIO_new(BIO_s_null()));
    char *data = malloc(LARGE);
    CHECK(data);
    memset(data, 'A' + number, LARGE);
    for (int round = 0; round < rounds; round++) {
        if (!in_turn)
            write_once(pair.client, data, LARGE);
        write_once(pair.client, data, SMALL);
    }
    free(data);
    pair_free(&pair);
    return NULL;
}

int main(int count, char **arguments) {
    CHECK(count == 4 || (count == 5 && !strcmp(arguments[4], "in-turn")));
    in_turn = count == 5;
    int threads = atoi(arguments[1]);
    rounds = atoi(arguments[2]);
    CHECK(threads >= 1 && threads <= MOST_THREADS && rounds >= 1);
    prepare();
    client = client_context();
    server = server_context();
    pthread_t started[MOST_THREADS];
    for (int at = 0; at < threads; at++) {
        CHECK(pthread_create(&started[at], NULL, run, (void *)(intptr_t)at) == 0);
        if (in_turn)
            CHECK(pthread_join(started[at], NULL) == 0);
    }
    for (int at = 0; at < threads && !in_turn; at++)
        CHECK(pthread_join(started[at], NULL) == 0);
    meet(arguments[3]);
    return 0;
}
