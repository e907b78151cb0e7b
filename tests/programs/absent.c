// A process that filters turn away now and then, in the middle of its connection.
//
//   absent name COUNT            is called "absent", and "gone" in between
//   absent late COUNT            the same, but "gone" first
//   absent user COUNT            is root's, and nobody's in between
//   absent group COUNT IN OUT    is in the control group IN, and in OUT in between: two files `cgroup.procs`
//   absent library COUNT         meets the test: its library has no probes until they meet again
//   absent reader                is called "gone" while a thread of it waits in a read
//
// Stretch N, which the filter lets pass, is `question N` and `answer N`.
#include "tls.h"
#include <pthread.h>
#include <sys/prctl.h>

static const char *way, *in, *out;

static void move_to(const char *procs) {
    int fd = open(procs, O_WRONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK(write(fd, "0", 1) == 1);
    close(fd);
    // Of a hierarchy of version 1 the agent learns by looking, some processes each second.
    sleep(atoi(setting("E2E_PAUSE", "0")));
}

static void be(int here) {
    char base[512];
    if (strcmp(way, "library") == 0) {
        CHECK(snprintf(base, sizeof base, "%s/%s", setting("E2E_DIR", "."), here ? "in" : "out") <
              (int)sizeof base);
        meet(base);
    } else if (strcmp(way, "user") == 0)
        CHECK(setresuid(here ? 0 : 65534, -1, 0) == 0);
    else if (strcmp(way, "group") == 0)
        move_to(here ? in : out);
    else
        CHECK(prctl(PR_SET_NAME, here ? "absent" : "gone") == 0);
}

static void pass(SSL *from, SSL *to, const char *word, int number) {
    char text[64], got[64];
    int size = snprintf(text, sizeof text, "%s %d\n", word, number);
    TLS_CHECK(SSL_write(from, text, size) == size);
    TLS_CHECK(SSL_read(to, got, sizeof got) == size && memcmp(got, text, size) == 0);
}

static void stretches(int count) {
    if (strcmp(way, "late") == 0)
        be(0);
    struct pair pair = pair_in_memory(client_context(), server_context());
    pair_handshake(&pair);
    if (strcmp(way, "late") == 0) {
        pass(pair.client, pair.server, "unseen", 0);
        be(1);
    }
    for (int number = 0; number < count; number++) {
        pass(pair.client, pair.server, "question", number);
        pass(pair.server, pair.client, "answer", number);
        be(0);
        pass(pair.client, pair.server, "unseen", number);
        pass(pair.server, pair.client, "unseen", number);
        be(1);
    }
    if (strcmp(way, "library") == 0)
        pass(pair.client, pair.server, "last", 0);
    pair_free(&pair);
}

static SSL *client;
static struct truth before, after;

// What a read that began while the process was wanted returns is seen.
static void *read_four(void *unused) {
    char got[64];
    const char expected[] = "ABCD";
    for (int number = 0; number < 4; number++) {
        TLS_CHECK(SSL_read(client, got, sizeof got) == 1 && got[0] == expected[number]);
        if (number != 2)
            note(number < 2 ? before.received : after.received, got, 1);
    }
    return unused;
}

static void *connect_now(void *unused) {
    TLS_CHECK(SSL_connect(client) == 1);
    return unused;
}

static void reader(void) {
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    client = SSL_new(client_context());
    SSL *server = SSL_new(server_context());
    TLS_CHECK(SSL_set_fd(client, ends[0]) == 1 && SSL_set_fd(server, ends[1]) == 1);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, connect_now, NULL) == 0);
    TLS_CHECK(SSL_accept(server) == 1);
    CHECK(pthread_join(thread, NULL) == 0);
    before = truth_open("client", 0), after = truth_open("client", 1);
    struct truth first = truth_open("server", 0), second = truth_open("server", 1);
    CHECK(pthread_create(&thread, NULL, read_four, NULL) == 0);
    usleep(200000);
    write_all(server, &first, "A", 1);
    usleep(200000);
    be(0);
    TLS_CHECK(SSL_write(server, "B", 1) == 1);
    usleep(200000);
    be(1);
    write_all(server, &second, "C", 1);
    usleep(200000);
    write_all(server, &second, "D", 1);
    CHECK(pthread_join(thread, NULL) == 0);
}

int main(int count, char **arguments) {
    prepare();
    // How soon a new process is held is not what is tested here: on a busy machine it may be later than its first call.
    usleep(100000);
    CHECK(count >= 2);
    way = arguments[1];
    if (strcmp(way, "reader") == 0) {
        way = "name";
        reader();
        return 0;
    }
    CHECK(count >= 3);
    in = count > 3 ? arguments[3] : NULL;
    out = count > 4 ? arguments[4] : NULL;
    stretches(atoi(arguments[2]));
    return 0;
}
