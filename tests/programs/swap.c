// Coroutines: two contexts on one thread, each of which gives way inside its write BIO, so that one
// SSL_write is open on each stack and the one that began first also returns first. Before its last write
// each makes an SSL. At the end the main stack writes once for each.
//
// usage: swap up|down   Is the second stack above the first one, or below?
#include "tls.h"
#include <sys/mman.h>
#include <ucontext.h>

enum { STACK = 1 << 20, TURNS = 20, SIZE = 3000 };

static SSL_CTX *client;
static ucontext_t scheduler, coroutines[2];
static struct pair pairs[2];
static int running = -1, done[2];

static long give_way(BIO *bio, int operation, const char *data, size_t size, int argi, long argl, int result,
                     size_t *processed) {
    (void)bio, (void)data, (void)size, (void)argi, (void)argl, (void)processed;
    if (operation == BIO_CB_WRITE && running >= 0)
        CHECK(swapcontext(&coroutines[running], &scheduler) == 0);
    return result;
}

static void body(int me) {
    unsigned char data[SIZE];
    for (int turn = 0; turn < TURNS; turn++) {
        if (turn == TURNS - 1)
            SSL_free(SSL_new(client));
        fill(data, sizeof data, me * 100 + turn + 1);
        write_all(pairs[me].client, &pairs[me].client_truth, data, sizeof data);
    }
    done[me] = 1;
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    prepare();
    int down = strcmp(arguments[1], "down") == 0;
    client = client_context();
    SSL_CTX *server = server_context();
    char *stacks = mmap(NULL, 2 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stacks != MAP_FAILED);
    for (int at = 0; at < 2; at++) {
        pairs[at] = pair_new(client, server, at);
        pair_handshake(&pairs[at]);
        BIO_set_callback_ex(SSL_get_wbio(pairs[at].client), give_way);
        CHECK(getcontext(&coroutines[at]) == 0);
        coroutines[at].uc_stack.ss_sp = stacks + (at ^ down) * STACK;
        coroutines[at].uc_stack.ss_size = STACK;
        coroutines[at].uc_link = &scheduler;
        makecontext(&coroutines[at], (void (*)(void))body, 1, at);
    }
    for (int turn = 0; !(done[0] && done[1]); turn++) {
        CHECK(turn < 10 * TURNS);
        running = turn % 2;
        if (!done[running])
            CHECK(swapcontext(&scheduler, &coroutines[running]) == 0);
    }
    running = -1;
    for (int at = 0; at < 2; at++) {
        unsigned char data[SIZE];
        fill(data, sizeof data, at * 100 + 99);
        write_all(pairs[at].client, &pairs[at].client_truth, data, sizeof data);
        read_all(pairs[at].server, &pairs[at].server_truth, (TURNS + 1) * SIZE);
        pair_free(&pairs[at]);
    }
    return 0;
}
