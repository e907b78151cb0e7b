// What has come and gone: counted by every process of a soak in one file that all of them map.
#pragma once
#include "common.h"
#include <stdatomic.h>
#include <sys/mman.h>

struct counts {
    atomic_ulong connections, processes, execs, killed, threads, libraries, groups;
};

// How a process' part ends.
enum how { WHOLE, MIDDLE, KILLED, FORKED, EXECED, LATE, THREADS, HOWS };

// soak_talk.c, which is a library of its own so that a process has OpenSSL no sooner than it wants.
typedef int talk_function(struct counts *counts, enum how how, unsigned seed, unsigned milliseconds);

static inline struct counts *counts_open(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, sizeof(struct counts)) == 0);
    void *counts = mmap(NULL, sizeof(struct counts), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(counts != MAP_FAILED);
    close(fd);
    return counts;
}
