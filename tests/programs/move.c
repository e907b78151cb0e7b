// One TLS session that changes its TCP connection in the middle: both ends have their bytes in memory, carry
// them over one connection, and then over another. The first one stays open.
//
//   move both     by SSL_set_bio
//   move halves   by SSL_set0_rbio and SSL_set0_wbio
//
// What goes over the first connection is `first N`, what goes over the second `second N`. Prints their
// server's ports.
#include "tls.h"
#include <sys/wait.h>

static const char *way;

struct end {
    SSL *ssl;
    BIO *in, *out;
    int fd;
};

static void use_new_memory(struct end *end) {
    end->in = BIO_new(BIO_s_mem()), end->out = BIO_new(BIO_s_mem());
    TLS_CHECK(end->in && end->out);
    BIO_set_mem_eof_return(end->in, -1);
    if (strcmp(way, "both") == 0) {
        SSL_set_bio(end->ssl, end->in, end->out);
    } else {
        SSL_set0_rbio(end->ssl, end->in);
        SSL_set0_wbio(end->ssl, end->out);
    }
}

static void carry_out(struct end *end) {
    char bytes[20000];
    int size = BIO_read(end->out, bytes, sizeof bytes);
    if (size > 0)
        CHECK(send(end->fd, bytes, size, 0) == size);
}

static void carry_in(struct end *end) {
    char bytes[20000];
    ssize_t size = recv(end->fd, bytes, sizeof bytes, 0);
    CHECK(size > 0);
    TLS_CHECK(BIO_write(end->in, bytes, size) == size);
}

static void shake_hands(struct end *end) {
    for (int turn = 0; turn < 20; turn++) {
        int done = SSL_do_handshake(end->ssl);
        carry_out(end);
        if (done == 1)
            return;
        carry_in(end);
    }
    TLS_CHECK(!"the handshake ends");
}

static void say(struct end *end, const char *word, int number) {
    char text[600];
    int size = snprintf(text, sizeof text, "%s %d %0*d\n", word, number, 7 + 31 * number, 0);
    TLS_CHECK(SSL_write(end->ssl, text, size) == size);
    carry_out(end);
}

static void hear(struct end *end) {
    char text[600];
    while (SSL_read(end->ssl, text, sizeof text) <= 0)
        carry_in(end);
}

static void exchange(struct end *end, const char *word, int is_client) {
    for (int number = 0; number < 12; number++) {
        if (is_client)
            say(end, word, number);
        hear(end);
        if (!is_client)
            say(end, word, number);
    }
}

static void run(struct end *end, int second, int is_client) {
    use_new_memory(end);
    shake_hands(end);
    exchange(end, "first", is_client);
    // All of the first is read before: nothing is on its way.
    end->fd = second;
    use_new_memory(end);
    exchange(end, "second", is_client);
}

static int listening(int *port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0 && listen(fd, 1) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    *port = ntohs(address.sin_port);
    return fd;
}

int main(int count, char **arguments) {
    prepare();
    CHECK(count == 2);
    way = arguments[1];
    int ports[2], listeners[2] = {listening(&ports[0]), listening(&ports[1])};
    printf("%d %d\n", ports[0], ports[1]);
    fflush(stdout);
    pid_t server = fork();
    CHECK(server >= 0);
    if (server == 0) {
        prepare();
        int first = accept(listeners[0], NULL, NULL), second = accept(listeners[1], NULL, NULL);
        CHECK(first >= 0 && second >= 0);
        struct end end = {.ssl = SSL_new(server_context()), .fd = first};
        SSL_set_accept_state(end.ssl);
        run(&end, second, 0);
        return 0;
    }
    int first = connect_to(ports[0]), second = connect_to(ports[1]);
    struct end end = {.ssl = SSL_new(client_context()), .fd = first};
    SSL_set_connect_state(end.ssl);
    run(&end, second, 1);
    int status;
    CHECK(waitpid(server, &status, 0) == server && status == 0);
    return 0;
}
