// Connections one after the other, both ends in this process.
//
// usage: churn THREADS FILE
//
// Until FILE is there. What is sent on each connection are PARTS lines, "part 0" the first, each by one
// call: whoever sees a connection from its start sees part 0.
#include "tls.h"
#include <pthread.h>

enum { MOST_THREADS = 8, PARTS = 4 };

static const char *until;
static SSL_CTX *client, *server;

static void *run(void *argument) {
    int number = (int)(intptr_t)argument;
    for (int turn = 0; !exists(until); turn++) {
        struct pair pair = pair_new(client, server, number);
        pair_handshake(&pair);
        for (int part = 0; part < PARTS; part++) {
            char line[64];
            int size = snprintf(line, sizeof line, "part %d of thread %d turn %d\n", part, number, turn);
            write_all(pair.client, &pair.client_truth, line, size);
            read_all(pair.server, &pair.server_truth, size);
            usleep(2000);
        }
        pair_free(&pair);
        close(pair.client_truth.sent);
        close(pair.client_truth.received);
        close(pair.server_truth.sent);
        close(pair.server_truth.received);
    }
    return NULL;
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    int threads = atoi(arguments[1]);
    until = arguments[2];
    CHECK(threads >= 1 && threads <= MOST_THREADS);
    prepare();
    client = client_context();
    server = server_context();
    pthread_t started[MOST_THREADS];
    for (int at = 0; at < threads; at++)
        CHECK(pthread_create(&started[at], NULL, run, (void *)(intptr_t)at) == 0);
    for (int at = 0; at < threads; at++)
        CHECK(pthread_join(started[at], NULL) == 0);
    return 0;
}
