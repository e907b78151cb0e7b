// Calls that never return: longjmp out of the read BIO, inside SSL_read, as an exception does. What the
// thread calls next lies at the same place of the stack, below it or above it.
#include "tls.h"
#include <pthread.h>
#include <setjmp.h>

enum { LEVEL = 512, SIZE = 3000 };

static jmp_buf away;
static struct pair pair, *abandoned;
static unsigned seed;

static long jump(BIO *bio, int operation, const char *data, size_t size, int argi, long argl, int result,
                 size_t *processed) {
    (void)bio, (void)data, (void)size, (void)argi, (void)argl, (void)processed;
    if (operation == BIO_CB_READ)
        longjmp(away, 1);
    return result;
}

// Calls `then` at this many levels of stack from here.
static __attribute__((noinline)) void at_level(int level, void (*then)(void)) {
    char room[LEVEL];
    if (level)
        at_level(level - 1, then);
    else
        then();
    __asm__ volatile("" ::"r"(room) : "memory");
}

static void abandon(void) {
    char buffer[100];
    SSL_read(abandoned->client, buffer, sizeof buffer);
    CHECK(!"it returned");
}

static void exchange(void) {
    unsigned char data[SIZE];
    fill(data, sizeof data, ++seed);
    write_all(pair.client, &pair.client_truth, data, sizeof data);
    read_all(pair.server, &pair.server_truth, sizeof data);
    write_all(pair.server, &pair.server_truth, data, sizeof data);
    read_all(pair.client, &pair.client_truth, sizeof data);
}

// What an abandoned call left on the stack is overwritten sooner or later.
static __attribute__((noinline)) void overwrite(void) {
    char room[100000];
    memset(room, 1, sizeof room);
    __asm__ volatile("" ::"r"(room) : "memory");
}

static void *talk(void *nothing) {
    SSL_CTX *client = client_context(), *server = server_context();
    pair = pair_new(client, server, 0);
    pair_handshake(&pair);
    static const int levels[][2] = {{3, 3}, {3, 10}, {10, 3}, {3, 60}, {60, 3}};
    for (size_t turn = 0; turn < sizeof levels / sizeof *levels; turn++) {
        struct pair other = pair_new(client, server, turn + 1);
        pair_handshake(&other);
        BIO_set_callback_ex(SSL_get_rbio(other.client), jump);
        abandoned = &other;
        for (volatile int again = 0; again < 2; again++)
            if (!setjmp(away))
                at_level(levels[turn][0], abandon);
        overwrite();
        at_level(levels[turn][1], exchange);
    }
    pair_free(&pair);
    return nothing;
}

// Not on the main stack, whose bounds are known.
int main(void) {
    prepare();
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, talk, NULL) == 0 && pthread_join(thread, NULL) == 0);
    return 0;
}
