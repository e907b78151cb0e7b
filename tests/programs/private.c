// A program with a TLS-like library of its own, linked into it: both ends of connections whose bytes are changed on
// their way. Nothing tells its functions from others.
#include "ends.h"

struct session {
    int fd;
    unsigned char key;
};

// Stores how much it has written.
__attribute__((noinline)) int private_write(struct session *session, const void *data, size_t size, size_t *written) {
    unsigned char changed[4096];
    if (size > sizeof changed)
        size = sizeof changed;
    for (size_t at = 0; at < size; at++)
        changed[at] = ((const unsigned char *)data)[at] ^ session->key;
    ssize_t sent = send(session->fd, changed, size, MSG_NOSIGNAL);
    if (sent <= 0)
        return -1;
    *written = sent;
    return 1;
}

// Returns how much it has read.
__attribute__((noinline)) int private_read(struct session *session, void *data, size_t size) {
    ssize_t got = recv(session->fd, data, size, 0);
    for (ssize_t at = 0; at < got; at++)
        ((unsigned char *)data)[at] ^= session->key;
    return (int)got;
}

static void open_end(struct end *end) {
    struct session *session = malloc(sizeof *session);
    CHECK(session);
    *session = (struct session){.fd = end->fd, .key = 0x5a};
    end->tls = session;
}

static int shake(struct end *end) {
    (void)end;
    return 1;
}

static size_t put(struct end *end, const void *data, size_t size) {
    size_t written = 0;
    return private_write(end->tls, data, size, &written) == 1 ? written : 0;
}

static size_t get(struct end *end, void *data, size_t size) {
    int got = private_read(end->tls, data, size);
    return got > 0 ? got : 0;
}

static size_t look(struct end *end, void *data, size_t size) {
    (void)end, (void)data, (void)size;
    return 0;
}

static void close_end(struct end *end) {
    // Its memory is not used again: nobody knows the functions that would say that a connection is over.
    close(end->fd);
}

int main(void) {
    prepare();
    converse_all();
    return 0;
}
