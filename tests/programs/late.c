// A client that loads libssl late, by dlopen: any version, given by its files.
//
// usage: late PORT fd|memory LIBRARY…   The last library is libssl. With memory it gets no socket: it works on memory
// BIOs, and what is in them is moved by this program, as .NET does it.
#include "common.h"
#include <dlfcn.h>

typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;
typedef struct bio_st BIO;

static int fd;
static BIO *in, *out;
static int (*get_error)(const SSL *, int);
static int (*bio_read)(BIO *, void *, int);
static int (*bio_write)(BIO *, const void *, int);

// Moves what there is between the BIOs and the socket; says whether the call is to be repeated.
static int moved(SSL *ssl, int result) {
    static unsigned char wire[20000];
    int size;
    if (!in)
        return 0;
    while ((size = bio_read(out, wire, sizeof wire)) > 0)
        note(fd, wire, size);
    if (result > 0)
        return 0;
    const int want_read = 2;
    CHECK(get_error(ssl, result) == want_read);
    CHECK((size = read(fd, wire, sizeof wire)) > 0);
    CHECK(bio_write(in, wire, size) == size);
    return 1;
}

#define CALL(result, call)                                                                         \
    do                                                                                             \
        (result) = (call);                                                                         \
    while (moved(ssl, result))

int main(int count, char **arguments) {
    CHECK(count >= 4);
    prepare();
    fd = connect_to(atoi(arguments[1]));
    int in_memory = strcmp(arguments[2], "memory") == 0;
    CHECK(in_memory || strcmp(arguments[2], "fd") == 0);
    void *library = NULL;
    for (int at = 3; at < count; at++) {
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
    GET(void, SSL_set_bio, SSL *, BIO *, BIO *);
    GET(int, SSL_get_error, const SSL *, int);
    GET(const void *, BIO_s_mem, void);
    GET(BIO *, BIO_new, const void *);
    GET(int, BIO_read, BIO *, void *, int);
    GET(int, BIO_write, BIO *, const void *, int);
    GET(int, SSL_connect, SSL *);
    GET(int, SSL_write, SSL *, const void *, int);
    GET(int, SSL_write_ex, SSL *, const void *, size_t, size_t *);
    GET(int, SSL_read, SSL *, void *, int);
    GET(int, SSL_read_ex, SSL *, void *, size_t, size_t *);
    GET(int, SSL_shutdown, SSL *);
    GET(void, SSL_free, SSL *);

    SSL *ssl = SSL_new(SSL_CTX_new(TLS_client_method()));
    CHECK(ssl);
    get_error = SSL_get_error, bio_read = BIO_read, bio_write = BIO_write;
    if (in_memory) {
        CHECK((in = BIO_new(BIO_s_mem())) && (out = BIO_new(BIO_s_mem())));
        SSL_set_bio(ssl, in, out);
    } else {
        CHECK(SSL_set_fd(ssl, fd) == 1);
    }
    int result;
    CALL(result, SSL_connect(ssl));
    CHECK(result == 1);
    struct truth truth = truth_open("late", 0);
    static unsigned char data[100016], back[7000];
    for (int turn = 0; turn < 4; turn++) {
        size_t up = 100000 >> turn, down = 30000 << turn, done = 0;
        fill(data, sizeof data, turn + 1);
        big_endian(data, up);
        big_endian(data + 8, down);
        // The first call of the process is part of what must be seen.
        if (turn % 2)
            CALL(result, SSL_write_ex(ssl, data, up + 16, &done));
        else
            CALL(done, SSL_write(ssl, data, (int)up + 16));
        CHECK(done == up + 16);
        note(truth.sent, data, done);
        while (down) {
            size_t want = down < sizeof back ? down : sizeof back;
            if (turn % 2) {
                CALL(result, SSL_read_ex(ssl, back, want, &done));
                CHECK(result == 1);
            } else {
                CALL(result, SSL_read(ssl, back, (int)want));
                CHECK(result > 0);
                done = result;
            }
            note(truth.received, back, done);
            down -= done;
        }
    }
    // It says 0 as long as the other end has not answered.
    moved(ssl, SSL_shutdown(ssl) + 1);
    SSL_free(ssl);
    close(fd);
    return 0;
}
