// A client that loads libssl late, by dlopen: any version, given by its files.
//
// usage: late PORT LIBRARY…   The last library is libssl.
#include "common.h"
#include <dlfcn.h>

typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;

int main(int count, char **arguments) {
    CHECK(count >= 3);
    prepare();
    int fd = connect_to(atoi(arguments[1]));
    void *library = NULL;
    for (int at = 2; at < count; at++) {
        library = dlopen(arguments[at], RTLD_NOW | RTLD_GLOBAL);
        if (!library) {
            fprintf(stderr, "%s\n", dlerror());
            return 92;
        }
    }
#define GET(type, name, ...)                                                                       \
    type (*name)(__VA_ARGS__) = dlsym(library, #name);                                             \
    CHECK(name)
    GET(const void *, TLS_client_method, void);
    GET(SSL_CTX *, SSL_CTX_new, const void *);
    GET(SSL *, SSL_new, SSL_CTX *);
    GET(int, SSL_set_fd, SSL *, int);
    GET(int, SSL_connect, SSL *);
    GET(int, SSL_write, SSL *, const void *, int);
    GET(int, SSL_write_ex, SSL *, const void *, size_t, size_t *);
    GET(int, SSL_read, SSL *, void *, int);
    GET(int, SSL_read_ex, SSL *, void *, size_t, size_t *);
    GET(int, SSL_shutdown, SSL *);
    GET(void, SSL_free, SSL *);

    SSL *ssl = SSL_new(SSL_CTX_new(TLS_client_method()));
    CHECK(ssl && SSL_set_fd(ssl, fd) == 1 && SSL_connect(ssl) == 1);
    struct truth truth = truth_open("late", 0);
    static unsigned char data[100016], back[7000];
    for (int turn = 0; turn < 4; turn++) {
        size_t up = 100000 >> turn, down = 30000 << turn, done = 0;
        fill(data, sizeof data, turn + 1);
        big_endian(data, up);
        big_endian(data + 8, down);
        // The first call of the process is part of what must be seen.
        if (turn % 2)
            CHECK(SSL_write_ex(ssl, data, up + 16, &done) == 1);
        else
            done = SSL_write(ssl, data, (int)up + 16);
        CHECK(done == up + 16);
        note(truth.sent, data, done);
        while (down) {
            size_t want = down < sizeof back ? down : sizeof back;
            if (turn % 2)
                CHECK(SSL_read_ex(ssl, back, want, &done) == 1);
            else
                CHECK((int)(done = SSL_read(ssl, back, (int)want)) > 0);
            note(truth.received, back, done);
            down -= done;
        }
    }
    SSL_shutdown(ssl);
    SSL_free(ssl);
    close(fd);
    return 0;
}
