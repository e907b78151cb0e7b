// Lives of handles: made, used again, shared, given up, and their addresses used again.
//
// usage: life many COUNT LIVE      pairs one after the other, COUNT in all; each is given up LIVE pairs later
//        life fresh COUNT          handles that never carry anything, no two at the same address; then a pair
//        life hoard COUNT          two pairs, one made when COUNT handles are alive and one before that
//        life clear PORT           one handle, four connections to a server of frames
//        life owners               a pair whose client has two owners, one of which gives up
//        life pair NUMBER [kill]   one pair, whose truth has this number; then dies by SIGKILL
//        life exec                 the same, in two programs of one process
//        life pids                 the same, in two processes with one id, one after the other
//        life ktls FILE            both ends of a socket whose TLS is the kernel's; the client sends FILE, too
//        life sendfile BYTES       a pair whose client calls SSL_sendfile, too; the kernel that sends is played
#include "tls.h"
#include <linux/sched.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static SSL_CTX *client, *server;

static void close_truth(struct truth truth) {
    close(truth.sent);
    close(truth.received);
}

// So many bytes each way, other ones for each seed.
static void exchange(struct pair *pair, size_t size, unsigned seed) {
    unsigned char data[2000];
    CHECK(size <= sizeof data);
    fill(data, size, 2 * seed);
    write_all(pair->client, &pair->client_truth, data, size);
    read_all(pair->server, &pair->server_truth, size);
    fill(data, size, 2 * seed + 1);
    write_all(pair->server, &pair->server_truth, data, size);
    read_all(pair->client, &pair->client_truth, size);
}

static struct pair joined(int number) {
    struct pair pair = pair_new(client, server, number);
    pair_handshake(&pair);
    return pair;
}

static void end(struct pair *pair) {
    pair_free(pair);
    close_truth(pair->client_truth);
    close_truth(pair->server_truth);
}

static void one(int number, size_t size) {
    struct pair pair = joined(number);
    printf("client %p\n", (void *)pair.client);
    exchange(&pair, size, number);
    end(&pair);
}

// Lines that name their connection, so that the test knows them without 40,000 files.
static void many(int count, int live) {
    SSL **pairs = calloc(live + 1, 2 * sizeof *pairs);
    CHECK(pairs);
    struct truth nowhere = {open("/dev/null", O_WRONLY | O_CLOEXEC), -1};
    nowhere.received = nowhere.sent;
    CHECK(nowhere.sent >= 0);
    for (int number = 0; number < count; number++) {
        SSL **old = pairs + number % (live + 1) * 2;
        SSL_free(old[0]);
        SSL_free(old[1]);
        struct pair pair = pair_in_memory(client, server);
        pair.client_truth = pair.server_truth = nowhere;
        pair_handshake(&pair);
        char line[64];
        int size = snprintf(line, sizeof line, "question %d\n", number);
        write_all(pair.client, &nowhere, line, size);
        read_all(pair.server, &nowhere, size);
        size = snprintf(line, sizeof line, "answer %d\n", number);
        write_all(pair.server, &nowhere, line, size);
        read_all(pair.client, &nowhere, size);
        old[0] = pair.client;
        old[1] = pair.server;
    }
    for (int at = 0; at < 2 * (live + 1); at++)
        SSL_free(pairs[at]);
    free(pairs);
}

// An allocator under which what is as large as a handle never gets an address again.
enum { SLOT = 16384, SLOTS = 65536 };
static char *slots;
static size_t next_slot;

static void *allocate(size_t size, const char *file, int line) {
    (void)file, (void)line;
    if (size < 1024 || size > SLOT || next_slot == SLOTS)
        return malloc(size);
    return slots + SLOT * next_slot++;
}

static int is_slot(void *memory) {
    return (char *)memory >= slots && (char *)memory < slots + (size_t)SLOT * SLOTS;
}

static void give_back(void *memory, const char *file, int line) {
    (void)file, (void)line;
    if (is_slot(memory))
        CHECK(madvise(memory, SLOT, MADV_DONTNEED) == 0);
    else
        free(memory);
}

static void *reallocate(void *memory, size_t size, const char *file, int line) {
    if (!is_slot(memory))
        return realloc(memory, size);
    void *other = malloc(size);
    CHECK(other);
    memcpy(other, memory, size < SLOT ? size : SLOT);
    give_back(memory, file, line);
    return other;
}

static void no_address_again(void) {
    slots = mmap(NULL, (size_t)SLOT * SLOTS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(slots != MAP_FAILED);
    CHECK(CRYPTO_set_mem_functions(allocate, reallocate, give_back) == 1);
}

static void fresh(int count) {
    SSL *last = NULL;
    for (int number = 0; number < count; number++) {
        SSL *ssl = SSL_new(client);
        TLS_CHECK(ssl);
        CHECK(ssl != last && is_slot(ssl));
        last = ssl;
        SSL_free(ssl);
    }
    one(0, 1000);
}

static void hoard(int count) {
    SSL **handles = calloc(count, sizeof *handles);
    CHECK(handles);
    struct pair before = joined(0);
    exchange(&before, 1000, 1);
    for (int number = 0; number < count; number++)
        TLS_CHECK(handles[number] = SSL_new(client));
    struct pair meanwhile = joined(1);
    exchange(&meanwhile, 1000, 2);
    exchange(&before, 1000, 3);
    for (int number = 0; number < count; number++)
        SSL_free(handles[number]);
    end(&meanwhile);
    exchange(&before, 1000, 4);
    end(&before);
    one(2, 1000);
}

// A frame of 1000 + number bytes up and as many down.
static void frame(SSL *ssl, int number) {
    unsigned char data[2000], head[16];
    size_t size = 1000 + number;
    struct truth truth = truth_open("client", number);
    big_endian(head, size);
    big_endian(head + 8, size);
    write_all(ssl, &truth, head, sizeof head);
    fill(data, size, number + 1);
    write_all(ssl, &truth, data, size);
    read_all(ssl, &truth, size);
    close_truth(truth);
}

static void clear(int port) {
    SSL *ssl = SSL_new(client);
    TLS_CHECK(ssl && SSL_set_tlsext_host_name(ssl, "once.example") == 1);
    int old = -1;
    for (int number = 0; number < 4; number++) {
        // The third one has had enough of its session, the last one sets its socket and no more.
        if (number == 2)
            TLS_CHECK(SSL_set_session(ssl, NULL) == 1);
        if (number == 1 || number == 2)
            TLS_CHECK(SSL_clear(ssl) == 1);
        int fd = connect_to(port);
        TLS_CHECK(SSL_set_fd(ssl, fd) == 1);
        SSL_set_connect_state(ssl);
        TLS_CHECK(SSL_do_handshake(ssl) == 1);
        frame(ssl, number);
        SSL_shutdown(ssl);
        // Its session can be used again.
        char rest;
        SSL_read(ssl, &rest, 1);
        if (old >= 0)
            close(old);
        old = fd;
    }
    SSL_free(ssl);
    close(old);
}

static void owners(void) {
    struct pair pair = joined(0);
    exchange(&pair, 1000, 1);
    TLS_CHECK(SSL_up_ref(pair.client) == 1);
    SSL_free(pair.client);
    exchange(&pair, 1000, 2);
    // As long as a connection outlives its handle.
    usleep(1500000);
    exchange(&pair, 1000, 3);
    end(&pair);
}

static pid_t fork_as(pid_t pid) {
    struct clone_args arguments = {.exit_signal = SIGCHLD};
    if (pid) {
        arguments.set_tid = (uintptr_t)&pid;
        arguments.set_tid_size = 1;
    }
    return syscall(SYS_clone3, &arguments, sizeof arguments);
}

static void pids(void) {
    pid_t pid = 0;
    for (int number = 0; number < 2; number++) {
        pid_t child = fork_as(pid);
        if (child < 0)
            _exit(77);
        if (child == 0) {
            prepare();
            one(number, 1000 + number);
            exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        CHECK(pid == 0 || child == pid);
        pid = child;
    }
}

// libssl asks the BIO whether the kernel does the TLS, and then calls this instead of libc's.
static int is_kernel_tls; // 2: it really does
static ssize_t kernel_sends;

ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    if (is_kernel_tls == 2)
        return syscall(SYS_sendfile, to, from, offset, size);
    if (kernel_sends < 0)
        errno = EAGAIN;
    return kernel_sends;
}

static long say_kernel_tls(BIO *bio, int operation, const char *data, size_t size, int argi, long argl, int result,
                           size_t *processed) {
    (void)bio, (void)data, (void)size, (void)argl, (void)processed;
    int is_asked = operation == (BIO_CB_CTRL | BIO_CB_RETURN) && argi == BIO_CTRL_GET_KTLS_SEND;
    return is_asked && is_kernel_tls ? 1 : result;
}

static void send_file(struct pair *pair, ssize_t sends, size_t size) {
    kernel_sends = sends;
    CHECK(SSL_sendfile(pair->client, 0, 0, size, 0) == sends);
    ERR_clear_error();
}

static void sendfile_in_between(ssize_t size) {
    struct pair pair = joined(0);
    BIO_set_callback_ex(SSL_get_wbio(pair.client), say_kernel_tls);
    exchange(&pair, 1000, 1);
    // Without the kernel libssl refuses; with it less may go out than was asked for, or nothing now.
    send_file(&pair, -1, size);
    is_kernel_tls = 1;
    send_file(&pair, -1, size);
    send_file(&pair, size, size);
    send_file(&pair, 7, size);
    send_file(&pair, 0, size);
    is_kernel_tls = 0;
    exchange(&pair, 1000, 2);
    end(&pair);
}

static int listening;

// What came is the truth of this end. The first line is answered.
static void *serve(void *nothing) {
    int fd = accept(listening, NULL, NULL);
    CHECK(fd >= 0);
    SSL *ssl = SSL_new(server);
    TLS_CHECK(ssl && SSL_set_fd(ssl, fd) == 1 && SSL_accept(ssl) == 1);
    struct truth truth = truth_open("server", 0);
    char buffer[20000];
    size_t got;
    for (int turn = 0; SSL_read_ex(ssl, buffer, sizeof buffer, &got) == 1; turn++) {
        note(truth.received, buffer, got);
        if (turn == 0)
            write_all(ssl, &truth, "go on\n", 6);
    }
    TLS_CHECK(SSL_get_error(ssl, 0) == SSL_ERROR_ZERO_RETURN);
    SSL_free(ssl);
    close(fd);
    return nothing;
}

static void by_the_kernel(const char *path) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(listening >= 0 && bind(listening, (struct sockaddr *)&address, length) == 0 && listen(listening, 1) == 0);
    CHECK(getsockname(listening, (struct sockaddr *)&address, &length) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, serve, NULL) == 0);

    SSL_CTX_set_options(client, SSL_OP_ENABLE_KTLS);
    SSL *ssl = SSL_new(client);
    int fd = connect_to(ntohs(address.sin_port)), file = open(path, O_RDONLY | O_CLOEXEC);
    TLS_CHECK(ssl && SSL_set_fd(ssl, fd) == 1 && SSL_connect(ssl) == 1);
    CHECK(file >= 0);
    if (!BIO_get_ktls_send(SSL_get_wbio(ssl)))
        _exit(77);
    is_kernel_tls = 2;
    struct truth truth = truth_open("client", 0);
    write_all(ssl, &truth, "head\n", 5);
    read_all(ssl, &truth, 6);
    char data[20000];
    for (off_t offset = 0;;) {
        ssize_t sent = SSL_sendfile(ssl, file, offset, 1 << 20, 0);
        TLS_CHECK(sent >= 0);
        if (sent == 0)
            break;
        for (ssize_t left = sent; left;) {
            ssize_t part = pread(file, data, left < 20000 ? left : 20000, offset);
            CHECK(part > 0);
            note(truth.sent, data, part);
            offset += part;
            left -= part;
        }
    }
    write_all(ssl, &truth, "tail\n", 5);
    SSL_shutdown(ssl);
    CHECK(pthread_join(thread, NULL) == 0);
    SSL_free(ssl);
    close(fd);
}

int main(int count, char **arguments) {
    CHECK(count >= 2);
    prepare();
    const char *kind = arguments[1];
    int number = count > 2 ? atoi(arguments[2]) : 0;
    if (strcmp(kind, "fresh") == 0)
        no_address_again();
    client = client_context();
    server = server_context();
    TLS_CHECK(SSL_CTX_set_num_tickets(server, 0) == 1);
    if (strcmp(kind, "many") == 0) {
        CHECK(count == 4);
        many(number, atoi(arguments[3]));
    } else if (strcmp(kind, "fresh") == 0) {
        fresh(number);
    } else if (strcmp(kind, "hoard") == 0) {
        hoard(number);
    } else if (strcmp(kind, "clear") == 0) {
        clear(number);
    } else if (strcmp(kind, "owners") == 0) {
        owners();
    } else if (strcmp(kind, "pair") == 0) {
        one(number, 1000 + number);
        fflush(stdout);
        if (count > 3)
            raise(SIGKILL);
    } else if (strcmp(kind, "exec") == 0) {
        one(0, 1000);
        fflush(stdout);
        execl("/proc/self/exe", "life", "pair", "1", NULL);
        CHECK(!"exec");
    } else if (strcmp(kind, "pids") == 0) {
        pids();
    } else if (strcmp(kind, "ktls") == 0) {
        CHECK(count == 3);
        by_the_kernel(arguments[2]);
    } else if (strcmp(kind, "sendfile") == 0) {
        CHECK(count == 3);
        sendfile_in_between(atoll(arguments[2]));
    } else {
        CHECK(!"a known kind");
    }
    return 0;
}
