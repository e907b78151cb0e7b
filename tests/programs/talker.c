// Preloaded: TLS in the memory of whatever process it is told to be in, by a thread of its own.
//
// TALK=WORD: in processes with this word in their command line. TALK_LATER=1: not before the process begins a thread
// itself, since ours may have none before it is locked in.
#define _GNU_SOURCE
#include "tls.h"
#include <dlfcn.h>
#include <pthread.h>

enum { TURNS = 1000, PAUSE = 10000 };

static struct pair pair;
static int waits;

static int begin_thread(pthread_t *thread, const pthread_attr_t *with, void *(*run)(void *), void *what) {
    int (*begin)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    CHECK(begin != NULL);
    return begin(thread, with, run, what);
}

// Nothing in here opens a file: a process that is locked in may not.
static void *talk(void *unused) {
    (void)unused;
    for (int turn = 0; turn < TURNS; turn++) {
        write_all(pair.client, &pair.client_truth, "talk", 4);
        read_all(pair.server, &pair.server_truth, 4);
        usleep(PAUSE);
    }
    return NULL;
}

static void start(void) {
    pthread_t thread;
    CHECK(begin_thread(&thread, NULL, talk, NULL) == 0);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *with, void *(*run)(void *), void *what) {
    if (__atomic_exchange_n(&waits, 0, __ATOMIC_RELAXED))
        start();
    return begin_thread(thread, with, run, what);
}

__attribute__((constructor)) static void begin(void) {
    char line[4096];
    const char *word = getenv("TALK");
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, line, sizeof line);
    close(file);
    if (!word || size <= 0 || !memmem(line, size, word, strlen(word)))
        return;
    pair = pair_new(client_context(), server_context(), getpid());
    pair_handshake(&pair);
    if (getenv("TALK_LATER"))
        waits = 1;
    else
        start();
}
