// Both ends of connections in one process and one thread, on sockets that don't wait. A library other than OpenSSL
// has to say how it does what is declared here; what is sent and when is the same for all.
#pragma once
#include "common.h"
#include <netinet/tcp.h>
#include <poll.h>

struct end {
    int is_server, fd;
    void *tls;
    struct truth truth;
    size_t total, sent, received;
    // A write that could not be done is to be repeated as it was.
    size_t pending;
    unsigned char *data;
};

// Makes `tls` on `fd`.
static void open_end(struct end *end);
// 1: done. 0: later.
static int shake(struct end *end);
// The number of bytes; 0: later.
static size_t put(struct end *end, const void *data, size_t size);
static size_t get(struct end *end, void *data, size_t size);
// As `get`, but the bytes come again; 0 also from a library that can't.
static size_t look(struct end *end, void *data, size_t size);
static void close_end(struct end *end);

enum { UP = 700001, DOWN = 500009 };
static size_t want_read, want_write, looked;

static inline void set_up(int fd) {
    int small = 16384, on = 1;
    CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
}

static inline void join(struct end *client, struct end *server) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&address, size) == 0);
    CHECK(listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    client->fd = connect_to(ntohs(address.sin_port));
    server->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(server->fd >= 0);
    close(listener);
    set_up(client->fd);
    set_up(server->fd);
}

// Writes of 1 byte to all there is, until one has to wait.
static inline void write_some(struct end *end) {
    static size_t step = 1;
    for (int turn = 0; turn < 40 && end->sent < end->total; turn++) {
        if (!end->pending) {
            size_t left = end->total - end->sent;
            end->pending = left < step ? left : step;
            step = step > 200000 ? 1 : step * 3 + 1;
        }
        size_t done = put(end, end->data + end->sent, end->pending);
        if (!done) {
            want_write++;
            return;
        }
        note(end->truth.sent, end->data + end->sent, done);
        end->sent += done;
        end->pending = 0;
    }
}

static inline void read_some(struct end *end, const struct end *other) {
    static unsigned char data[30000], ahead[100];
    static size_t turn;
    for (;;) {
        size_t want = ++turn % 5 ? 1 + turn * 7919 % sizeof data : 1;
        size_t seen = turn % 3 ? 0 : look(end, ahead, sizeof ahead < want ? sizeof ahead : want);
        size_t got = get(end, data, want);
        if (!got) {
            want_read++;
            return;
        }
        looked += seen;
        CHECK(seen <= got && memcmp(ahead, data, seen) == 0);
        CHECK(got <= other->total - end->received);
        CHECK(memcmp(data, other->data + end->received, got) == 0);
        note(end->truth.received, data, got);
        end->received += got;
    }
}

// Until one of them can go on.
static inline void rest(const struct end *one, const struct end *other) {
    struct pollfd both[] = {{.fd = one->fd, .events = POLLIN | (one->pending ? POLLOUT : 0)},
                            {.fd = other->fd, .events = POLLIN | (other->pending ? POLLOUT : 0)}};
    CHECK(poll(both, 2, 10000) > 0);
}

// One connection, from its handshake to its end.
static inline void converse(int number) {
    static unsigned char up[UP], down[DOWN];
    struct end client = {.data = up, .total = UP}, server = {.is_server = 1, .data = down, .total = DOWN};
    fill(up, UP, 2 * number + 1);
    fill(down, DOWN, 2 * number + 2);
    join(&client, &server);
    client.truth = truth_open("client", number);
    server.truth = truth_open("server", number);
    open_end(&client);
    open_end(&server);
    for (int shaken = 0; shaken != 3;) {
        shaken |= shake(&client) | shake(&server) << 1;
        if (shaken != 3)
            rest(&client, &server);
    }
    while (client.received < DOWN || server.received < UP) {
        size_t before = client.received + server.received + client.sent + server.sent;
        write_some(&client);
        read_some(&server, &client);
        write_some(&server);
        read_some(&client, &server);
        if (client.received + server.received + client.sent + server.sent == before)
            rest(&client, &server);
    }
    close_end(&client);
    close_end(&server);
}

// Three connections, at the same addresses as far as the library likes.
static inline void converse_all(void) {
    for (int number = 0; number < 3; number++)
        converse(number);
    printf("want_read %zu\nwant_write %zu\nlooked %zu\n", want_read, want_write, looked);
}
