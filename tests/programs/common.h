// What all C programs share: a deadline, truth files, a socket. No OpenSSL here.
//
// Environment: E2E_DIR (truth files), E2E_CERT and E2E_KEY (certificate), E2E_SECONDS (deadline),
// E2E_PDEATHSIG=0 (live on when the parent dies).
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, strerror(errno));   \
            _exit(90);                                                                             \
        }                                                                                          \
    } while (0)

static inline const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}

static inline void prepare(void) {
    if (strcmp(setting("E2E_PDEATHSIG", "1"), "1") == 0)
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    signal(SIGPIPE, SIG_IGN);
    alarm(atoi(setting("E2E_SECONDS", "60")));
}

// The plaintext of one connection, each direction a file.
struct truth {
    int sent, received;
};

static inline int truth_file(const char *name, int number, const char *direction) {
    char path[512];
    CHECK(snprintf(path, sizeof path, "%s/%s-%d.%s", setting("E2E_DIR", "."), name, number, direction) <
          (int)sizeof path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    CHECK(fd >= 0);
    return fd;
}

static inline struct truth truth_open(const char *name, int number) {
    struct truth truth = {truth_file(name, number, "sent"), truth_file(name, number, "received")};
    return truth;
}

static inline void note(int fd, const void *data, size_t size) {
    while (size) {
        ssize_t written = write(fd, data, size);
        CHECK(written > 0);
        data = (const char *)data + written;
        size -= written;
    }
}

// Bytes that repeat nowhere.
static inline void fill(void *data, size_t size, uint64_t seed) {
    uint64_t state = seed * 0x9e3779b97f4a7c15ull | 1;
    for (size_t at = 0; at < size; at += 8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy((char *)data + at, &state, size - at < 8 ? size - at : 8);
    }
}

static inline int connect_to(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    return fd;
}

static inline void big_endian(unsigned char *to, uint64_t value) {
    for (int at = 7; at >= 0; at--, value >>= 8)
        to[at] = value & 0xff;
}

static inline int exists(const char *path) {
    struct stat status;
    return stat(path, &status) == 0;
}

// Makes BASE.here, then waits for BASE.go.
static inline void meet(const char *base) {
    char here[512], go[512];
    CHECK(snprintf(here, sizeof here, "%s.here", base) < (int)sizeof here);
    CHECK(snprintf(go, sizeof go, "%s.go", base) < (int)sizeof go);
    int fd = open(here, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    CHECK(fd >= 0);
    close(fd);
    for (int turn = 0; !exists(go); turn++) {
        CHECK(turn < 60000);
        usleep(1000);
    }
}
