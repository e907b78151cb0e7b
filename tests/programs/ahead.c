// A server that reads ahead and writes into a buffer, as Apache's does: the request comes with the last message of
// the handshake, and the answer goes out behind the call. So no call that carries plaintext uses the socket.
//
// The client has its bytes in memory and sends both messages at once. Prints the server's port, then for each
// connection the client's.
#include "tls.h"
#include <sys/wait.h>

enum { CONNECTIONS = 12 };

static void serve(int fd, int number) {
    char text[100];
    SSL *ssl = SSL_new(server_context());
    BIO *buffer = BIO_push(BIO_new(BIO_f_buffer()), BIO_new_socket(fd, BIO_NOCLOSE));
    TLS_CHECK(ssl && buffer);
    SSL_set_bio(ssl, BIO_new_socket(fd, BIO_NOCLOSE), buffer);
    SSL_set_read_ahead(ssl, 1);
    TLS_CHECK(SSL_accept(ssl) == 1);
    CHECK(recv(fd, text, sizeof text, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    TLS_CHECK(SSL_read(ssl, text, sizeof text) > 0);
    int size = snprintf(text, sizeof text, "answer %d\n", number);
    TLS_CHECK(SSL_write(ssl, text, size) == size);
    TLS_CHECK(BIO_flush(buffer) == 1);
    // The client closes first.
    CHECK(recv(fd, text, sizeof text, 0) == 0);
    SSL_free(ssl);
}

static void ask(int fd, int number) {
    char bytes[20000];
    SSL *ssl = SSL_new(client_context());
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    TLS_CHECK(ssl && in && out);
    BIO_set_mem_eof_return(in, -1);
    SSL_set_bio(ssl, in, out);
    while (SSL_connect(ssl) != 1) {
        int size = BIO_read(out, bytes, sizeof bytes);
        if (size > 0)
            CHECK(send(fd, bytes, size, 0) == size);
        ssize_t got = recv(fd, bytes, sizeof bytes, 0);
        CHECK(got > 0);
        TLS_CHECK(BIO_write(in, bytes, got) == got);
    }
    int size = snprintf(bytes, sizeof bytes, "request %d\n", number);
    TLS_CHECK(SSL_write(ssl, bytes, size) == size);
    size = BIO_read(out, bytes, sizeof bytes);
    CHECK(send(fd, bytes, size, 0) == size);
    while (SSL_read(ssl, bytes, sizeof bytes) <= 0) {
        ssize_t got = recv(fd, bytes, sizeof bytes, 0);
        CHECK(got > 0);
        TLS_CHECK(BIO_write(in, bytes, got) == got);
    }
    SSL_free(ssl);
}

int main(void) {
    prepare();
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&address, length) == 0);
    CHECK(listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    int port = ntohs(address.sin_port);
    printf("%d\n", port);
    fflush(stdout);
    pid_t client = fork();
    CHECK(client >= 0);
    if (client == 0) {
        prepare();
        for (int number = 0; number < CONNECTIONS; number++) {
            int fd = connect_to(port);
            ask(fd, number);
            close(fd);
        }
        return 0;
    }
    for (int number = 0; number < CONNECTIONS; number++) {
        length = sizeof address;
        int fd = accept(listener, (struct sockaddr *)&address, &length);
        CHECK(fd >= 0);
        printf("%d\n", ntohs(address.sin_port));
        serve(fd, number);
        close(fd);
    }
    int status;
    CHECK(waitpid(client, &status, 0) == client && status == 0);
    return 0;
}
