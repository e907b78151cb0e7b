// A TLS client with two pairs of functions that have the arguments of TLS functions and are none: its own send and
// receive, which see what is encrypted, and its checksums. Somebody may name them by mistake.
//
// usage: wire PORT (wire|digest): talks until there is no breakpoint in these.
#include "tls.h"

struct wire {
    int fd;
    unsigned sum;
};

__attribute__((noipa)) int wire_send(struct wire *wire, const void *data, int size) {
    return (int)send(wire->fd, data, size, MSG_NOSIGNAL);
}

__attribute__((noipa)) int wire_receive(struct wire *wire, void *data, int size) {
    return (int)recv(wire->fd, data, size, 0);
}

// Positive, and more than any buffer here has.
static inline int add(struct wire *wire, const unsigned char *data, int size) {
    for (int at = 0; at < size; at++)
        wire->sum = wire->sum * 31 + data[at];
    return (int)((wire->sum & 0x3fffffff) | 0x20000000);
}

__attribute__((noipa)) int digest_sent(struct wire *wire, const void *data, int size) {
    return add(wire, data, size);
}

__attribute__((noipa)) int digest_received(struct wire *wire, const void *data, int size) {
    return add(wire, data, size) ^ 1;
}

static int put(BIO *bio, const char *data, int size) {
    return wire_send(BIO_get_data(bio), data, size);
}

static int get(BIO *bio, char *data, int size) {
    return wire_receive(BIO_get_data(bio), data, size);
}

static long order(BIO *bio, int command, long number, void *pointer) {
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH;
}

static int has_breakpoint(const void *function) {
    return memchr(function, 0xcc, 16) != NULL;
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    prepare();
    int is_digest = strcmp(arguments[2], "digest") == 0;
    const void *one = is_digest ? (void *)digest_sent : (void *)wire_send;
    const void *other = is_digest ? (void *)digest_received : (void *)wire_receive;
    printf("probed %d\n", has_breakpoint(one) + has_breakpoint(other));

    struct wire wire = {.fd = connect_to(atoi(arguments[1])), .sum = 1};
    BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "wire");
    TLS_CHECK(method && BIO_meth_set_write(method, put) && BIO_meth_set_read(method, get));
    TLS_CHECK(BIO_meth_set_ctrl(method, order));
    BIO *bio = BIO_new(method);
    SSL *ssl = SSL_new(client_context());
    TLS_CHECK(bio && ssl);
    BIO_set_data(bio, &wire);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl, bio, bio);
    TLS_CHECK(SSL_connect(ssl) == 1);

    struct truth truth = truth_open("wire", 0);
    static unsigned char data[1 << 20], back[20000];
    enum { DOWN = 50021 };
    fill(data, sizeof data, 5);
    big_endian(data, sizeof data - 16);
    big_endian(data + 8, DOWN);
    for (size_t at = 0; at < sizeof data;) {
        // Slowly at the end, so that there is something to be seen until the probes are out.
        int is_last = at + 4096 >= sizeof data;
        for (int turn = 0; is_last && has_breakpoint(one) + has_breakpoint(other); turn++) {
            CHECK(turn < 10000);
            usleep(1000);
        }
        size_t size = sizeof data - at < 1000 ? sizeof data - at : 1000;
        TLS_CHECK(SSL_write(ssl, data + at, (int)size) == (int)size);
        note(truth.sent, data + at, size);
        CHECK(digest_sent(&wire, data + at, (int)size) > 0);
        at += size;
    }
    for (size_t left = DOWN; left;) {
        int got = SSL_read(ssl, back, (int)(left < sizeof back ? left : sizeof back));
        TLS_CHECK(got > 0);
        note(truth.received, back, got);
        CHECK(digest_received(&wire, back, got) > 0);
        left -= got;
    }
    SSL_free(ssl);
    BIO_meth_free(method);
    return 0;
}
