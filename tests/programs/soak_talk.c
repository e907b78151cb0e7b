// Connections of one process with itself over loopback, both ends in one thread; see soak.c.
#include "soak.h"
#include "tls.h"
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>

struct line {
    SSL *client, *server;
    int client_fd, server_fd;
};

static SSL_CTX *client, *server;
static struct counts *counted;
static int listener, port;

static SSL_CTX *self_signed(void) {
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    TLS_CHECK(key && certificate && context);
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 30 * 86400);
    TLS_CHECK(X509_set_pubkey(certificate, key) == 1);
    X509_NAME *name = X509_get_subject_name(certificate);
    TLS_CHECK(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (unsigned char *)"soak", -1, -1, 0) == 1);
    TLS_CHECK(X509_set_issuer_name(certificate, name) == 1 && X509_sign(certificate, key, EVP_sha256()));
    TLS_CHECK(SSL_CTX_use_certificate(context, certificate) == 1 && SSL_CTX_use_PrivateKey(context, key) == 1);
    X509_free(certificate);
    EVP_PKEY_free(key);
    return context;
}

static void listen_here(void) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 4) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    port = ntohs(address.sin_port);
}

static void set_up(int fd) {
    // No port waits for its next use when the connection is over.
    struct linger at_once = {.l_onoff = 1};
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
}

static void wait_readable(int fd) {
    struct pollfd one = {.fd = fd, .events = POLLIN};
    CHECK(poll(&one, 1, 10000) > 0);
}

static struct line open_line(unsigned seed) {
    struct line line = {.client_fd = connect_to(port)};
    line.server_fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(line.server_fd >= 0);
    set_up(line.client_fd);
    set_up(line.server_fd);
    line.client = SSL_new(client);
    line.server = SSL_new(server);
    TLS_CHECK(line.client && line.server);
    TLS_CHECK(SSL_set_fd(line.client, line.client_fd) == 1 && SSL_set_fd(line.server, line.server_fd) == 1);
    char name[64];
    // Most names come again, some never.
    snprintf(name, sizeof name, "host-%u.soak.test", seed % 4 ? seed % 40 : seed);
    SSL_set_tlsext_host_name(line.client, name);
    SSL_set_connect_state(line.client);
    SSL_set_accept_state(line.server);
    for (int turn = 0, shaken = 0; shaken != 3; turn++) {
        CHECK(turn < 1000);
        shaken = (SSL_do_handshake(line.client) == 1) | (SSL_do_handshake(line.server) == 1) << 1;
    }
    atomic_fetch_add(&counted->connections, 1);
    return line;
}

static void close_line(struct line *line, int with_a_word) {
    if (with_a_word) {
        SSL_shutdown(line->client);
        SSL_shutdown(line->server);
    }
    SSL_free(line->client);
    SSL_free(line->server);
    close(line->client_fd);
    close(line->server_fd);
    ERR_clear_error();
}

static void carry(SSL *from, SSL *to, const char *data, size_t size) {
    char buffer[16384];
    while (size) {
        size_t part = size < sizeof buffer ? size : sizeof buffer, put = 0, got = 0;
        TLS_CHECK(SSL_write_ex(from, data, part, &put) == 1 && put == part);
        data += part;
        size -= part;
        while (part) {
            if (SSL_read_ex(to, buffer, part, &got) == 1)
                part -= got;
            else
                wait_readable(SSL_get_fd(to));
        }
    }
}

static void request(struct line *line, unsigned seed) {
    char head[256];
    int size = snprintf(head, sizeof head, "GET /thing/%u HTTP/1.1\r\nHost: soak.test\r\nAccept: */*\r\n\r\n", seed);
    carry(line->client, line->server, head, size);
}

// Only `part` of it comes.
static void response(struct line *line, unsigned seed, double part) {
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\n";
    static _Thread_local char text[40000];
    size_t body = seed % 16 ? 100 + seed % 900 : 30000;
    int size = snprintf(text, sizeof text, head, body);
    memset(text + size, 'a' + seed % 26, body);
    carry(line->server, line->client, text, (size + body) * part);
}

static void converse(unsigned seed) {
    struct line line = open_line(seed);
    if (seed % 8 == 1) {
        char bytes[600];
        fill(bytes, sizeof bytes, seed);
        carry(line.client, line.server, bytes, sizeof bytes);
        carry(line.server, line.client, bytes, sizeof bytes / 2);
    } else {
        for (unsigned turn = 0; turn < 2; turn++) {
            request(&line, seed + turn);
            response(&line, seed + turn, seed % 8 == 2 ? 0.5 : 1);
            if (seed % 8 == 2)
                break;
        }
    }
    close_line(&line, seed % 8 != 3);
}

static void *converse_thread(void *argument) {
    converse((unsigned)(uintptr_t)argument);
    return NULL;
}

static void converse_in_thread(unsigned seed) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, converse_thread, (void *)(uintptr_t)seed) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    atomic_fetch_add(&counted->threads, 1);
}

static uint64_t milliseconds_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000ull + time.tv_nsec / 1000000;
}

// The connection is its parent's, too, and each goes on with a handle of its own.
static void fork_with(struct line *line, unsigned seed) {
    pid_t parent = getpid(), child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
        if (getppid() != parent)
            _exit(1);
        response(line, seed, 1);
        converse(seed + 2);
        _exit(0);
    }
    atomic_fetch_add(&counted->processes, 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

int talk(struct counts *counts, enum how how, unsigned seed, unsigned milliseconds) {
    counted = counts;
    client = client_context();
    server = self_signed();
    listen_here();
    uint64_t end = milliseconds_now() + milliseconds;
    do {
        if (seed % 16 == 5 || how == THREADS)
            converse_in_thread(seed++);
        else
            converse(seed++);
    } while (milliseconds_now() < end);
    if (how == WHOLE || how == LATE || how == THREADS)
        return 0;
    struct line line = open_line(seed);
    request(&line, seed);
    if (how == FORKED)
        fork_with(&line, seed);
    else
        response(&line, seed, 0.3);
    if (how == KILLED) {
        atomic_fetch_add(&counted->killed, 1);
        raise(SIGKILL);
    }
    // Nobody closes the connection.
    return 0;
}
