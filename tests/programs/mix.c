// A client that uses the four calls in every way: sizes from 1 B to 1 MB, peeks, empty writes,
// retries, threads, fork. It speaks the frames of server.py.
//
// usage: mix PORT [threads=N] [rounds=N] [single=BYTES] [largest=BYTES] [nonblock] [fork] [late=BASE] [stay=BASE]
//            [until=FILE]
//   single   one SSL_write of this many bytes instead of the mix
//   largest  the larger sizes of the mix become this
//   nonblock WANT_READ and WANT_WRITE; prints how many there were of each
//   fork     a child goes on with the connection, its truth is in child-N
//   late     after a round waits for BASE.go, having made BASE.here; the truth of what follows is in late-N
//   stay     waits for BASE.go at its end, having made BASE.here
//   until    rounds until the file is there
#include "tls.h"
#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>

static const size_t SIZES[] = {1,     2,     100,   511,   512,   513,    4095,   4096,    16383,
                               16384, 16385, 65535, 65536, 65537, 100000, 131073, 1000000, 7};
enum { COUNT = sizeof SIZES / sizeof *SIZES, LARGEST = 1000000 };

static int port, threads = 1, rounds = 1, nonblock, forks;
static size_t single, largest = LARGEST;
static const char *late, *stay, *until;
static SSL_CTX *context;
static int want_read, want_write;

struct client {
    SSL *ssl;
    struct truth truth;
    unsigned calls;
};

// 1: the same call again. 0: it is done.
static int again(struct client *client, int result) {
    if (result > 0)
        return 0;
    struct pollfd ready = {.fd = SSL_get_fd(client->ssl)};
    switch (SSL_get_error(client->ssl, result)) {
    case SSL_ERROR_WANT_READ:
        ready.events = POLLIN;
        __atomic_add_fetch(&want_read, 1, __ATOMIC_RELAXED);
        break;
    case SSL_ERROR_WANT_WRITE:
        ready.events = POLLOUT;
        __atomic_add_fetch(&want_write, 1, __ATOMIC_RELAXED);
        break;
    default:
        TLS_CHECK(!"only retries");
    }
    TLS_CHECK(nonblock);
    CHECK(poll(&ready, 1, 30000) == 1);
    return 1;
}

static void send_bytes(struct client *client, const unsigned char *data, size_t size) {
    // Nothing to send is not an error, and no bytes.
    size_t none = 0;
    if (client->calls % 5 == 3) {
        SSL_write_ex(client->ssl, data, 0, &none);
        CHECK(none == 0);
        ERR_clear_error();
    }
    while (size) {
        size_t written = 0;
        int result;
        if (client->calls++ % 2) {
            while (again(client, result = SSL_write_ex(client->ssl, data, size, &written)))
                ;
        } else {
            while (again(client, result = SSL_write(client->ssl, data, (int)size)))
                ;
            written = result;
        }
        note(client->truth.sent, data, written);
        data += written;
        size -= written;
    }
}

static void receive(struct client *client, size_t size) {
    static const size_t BUFFERS[] = {1, 13, 512, 16384, 16385, 200000};
    unsigned char *buffer = malloc(200000), *peeked = malloc(200000);
    CHECK(buffer && peeked);
    while (size) {
        size_t want = BUFFERS[client->calls % 6], got = 0, seen = 0;
        want = want < size ? want : size;
        int result;
        switch (client->calls++ % 4) {
        case 0:
            while (again(client, SSL_peek_ex(client->ssl, peeked, want, &seen)))
                ;
            // fall through
        case 1:
            while (again(client, SSL_read_ex(client->ssl, buffer, want, &got)))
                ;
            break;
        case 2:
            while (again(client, result = SSL_peek(client->ssl, peeked, (int)want)))
                ;
            seen = result;
            // fall through
        default:
            while (again(client, result = SSL_read(client->ssl, buffer, (int)want)))
                ;
            got = result;
        }
        CHECK(seen <= got && memcmp(buffer, peeked, seen) == 0);
        note(client->truth.received, buffer, got);
        size -= got;
    }
    free(buffer);
    free(peeked);
}

static void exchange(struct client *client, size_t up, size_t down, uint64_t seed) {
    unsigned char *data = malloc(up), head[16];
    CHECK(data);
    fill(data, up, seed);
    big_endian(head, up);
    big_endian(head + 8, down);
    send_bytes(client, head, sizeof head);
    send_bytes(client, data, up);
    receive(client, down);
    free(data);
}

static void round_of(struct client *client, uint64_t seed) {
    if (single) {
        exchange(client, single, 1, seed);
        return;
    }
    for (int at = 0; at < COUNT; at++) {
        size_t up = SIZES[at], down = SIZES[COUNT - 1 - at];
        exchange(client, up > largest ? largest : up, down > largest ? largest : down, seed * 100 + at);
    }
}

static void *run(void *argument) {
    int number = (int)(intptr_t)argument;
    struct client client = {.ssl = SSL_new(context), .truth = truth_open("mix", number), .calls = number};
    TLS_CHECK(client.ssl);
    int fd = connect_to(port);
    TLS_CHECK(SSL_set_fd(client.ssl, fd) == 1 && SSL_connect(client.ssl) == 1);
    if (nonblock) {
        int small = 4096;
        CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
        CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
        if (number % 2)
            SSL_set_mode(client.ssl, SSL_MODE_ENABLE_PARTIAL_WRITE);
    }
    for (int at = 0; at < rounds; at++)
        round_of(&client, number * 1000 + at);
    for (int at = 0; until && !exists(until); at++) {
        exchange(&client, 3000 + at % 20000, 5000 + at % 7000, number * 1000 + at);
        usleep(500);
    }
    if (late) {
        meet(late);
        client.truth = truth_open("late", number);
        round_of(&client, number * 1000 + 500);
    }
    if (stay)
        meet(stay);
    if (forks) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            prepare();
            client.truth = truth_open("child", number);
            round_of(&client, number * 1000 + 600);
            SSL_shutdown(client.ssl);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    } else {
        SSL_shutdown(client.ssl);
    }
    close(fd);
    SSL_free(client.ssl);
    return NULL;
}

static const char *option(const char *argument, const char *name) {
    size_t length = strlen(name);
    return strncmp(argument, name, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

int main(int count, char **arguments) {
    CHECK(count >= 2);
    port = atoi(arguments[1]);
    for (int at = 2; at < count; at++) {
        const char *value, *argument = arguments[at];
        if ((value = option(argument, "threads")))
            threads = atoi(value);
        else if ((value = option(argument, "rounds")))
            rounds = atoi(value);
        else if ((value = option(argument, "single")))
            single = strtoull(value, NULL, 10);
        else if ((value = option(argument, "largest")))
            largest = strtoull(value, NULL, 10);
        else if ((value = option(argument, "late")))
            late = value;
        else if ((value = option(argument, "stay")))
            stay = value;
        else if ((value = option(argument, "until")))
            until = value;
        else if (strcmp(argument, "nonblock") == 0)
            nonblock = 1;
        else if (strcmp(argument, "fork") == 0)
            forks = 1;
        else
            CHECK(!"a known option");
    }
    CHECK(threads >= 1 && threads <= 64);
    prepare();
    context = client_context();
    pthread_t started[64];
    for (int at = 1; at < threads; at++)
        CHECK(pthread_create(&started[at], NULL, run, (void *)(intptr_t)at) == 0);
    run((void *)0);
    for (int at = 1; at < threads; at++)
        CHECK(pthread_join(started[at], NULL) == 0);
    printf("want_read %d\nwant_write %d\n", want_read, want_write);
    return 0;
}
