// Preloaded: TLS in the memory of whatever process it is told to be in, by a thread of its own.
//
// TALK=WORD: in processes with this word in their command line.
#include "tls.h"
#include <pthread.h>

enum { TURNS = 1000, PAUSE = 10000 };

static void *talk(void *unused) {
    (void)unused;
    struct pair pair = pair_new(client_context(), server_context(), getpid());
    pair_handshake(&pair);
    for (int turn = 0; turn < TURNS; turn++) {
        write_all(pair.client, &pair.client_truth, "talk", 4);
        read_all(pair.server, &pair.server_truth, 4);
        usleep(PAUSE);
    }
    return NULL;
}

__attribute__((constructor)) static void begin(void) {
    char line[4096];
    const char *word = getenv("TALK");
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, line, sizeof line);
    close(file);
    if (!word || size <= 0 || !memmem(line, size, word, strlen(word)))
        return;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, talk, NULL) == 0);
}
