// A TLS load that measures itself: `cargo xtask bench capture` drives it.
//
//   load memory        client and server over a memory BIO pair in one thread: no system call between two TLS calls
//   load client PORT   client over loopback, to a `load echo` or `load sink`
//   load echo | sink   the other end; prints its port; sink reads only
//   load once [PORT]   one pair over memory BIOs, or of an echo on 127.0.0.1, then a second of silence
//
// memory and client print "ready" and then obey one command a line, each answered by one line of JSON:
//   run size=N [pairs=N] [ms=N] [rate=PAIRS_PER_SECOND] [oneway=1] [text=1] [hash=1]
//   map path=FILE at=OFFSET,OFFSET...   until a breakpoint stands at each offset of a new mapping of FILE
//
// A pair is one SSL_write and the SSL_reads that bring the same number of bytes. Time is taken around blocks of
// pairs. A block in which somebody else got the CPU ("disturbed") counts in everything but the elapsed times, as long
// as there are others. What a virtual machine's host takes is not counted anywhere: so the tenth of slowest blocks is
// left out of the mean, and the tenth of fastest ones with it. CPU time is of all blocks.
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    LONGEST_WAIT_S = 900,   // for a command, and for its end
    LARGEST = 64 * 1024,    // plaintext of one write
    WINDOWS = 65521,        // different contents of a write before the first one comes again
    MOST_BLOCKS = 1 << 20,
};
static const uint64_t SECOND = 1000000000ull;

struct line {
    SSL *writer, *reader;
};

struct order {
    size_t size;
    uint64_t pairs, ms, rate;
    int one_way, text, hash;
};

static unsigned char noise[WINDOWS + LARGEST], prose[WINDOWS + LARGEST], received[LARGEST];
static float blocks[MOST_BLOCKS];

static void die(const char *what)
{
    fprintf(stderr, "load: %s failed\n", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static uint64_t now(void) { return clock_ns(CLOCK_MONOTONIC); }

static void sleep_until(uint64_t when)
{
    struct timespec t = {when / SECOND, when % SECOND};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static long preemptions(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nivcsw;
}

// Every write takes its bytes one further on, so no two of the first WINDOWS writes are equal.
static void fill_content(void)
{
    static const char letters[] = "etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLU0123456789     \"\"\":,,{}[]\n.";
    uint64_t state = 88172645463325252ull;
    for (size_t i = 0; i < sizeof noise; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        noise[i] = state >> 32;
        prose[i] = letters[(state >> 40) % (sizeof letters - 1)];
    }
}

static const unsigned char *content(const struct order *o, uint64_t n)
{
    return (o->text ? prose : noise) + n % WINDOWS;
}

static SSL_CTX *client_context(void)
{
    SSL_CTX *c = SSL_CTX_new(TLS_client_method());
    if (!c || !SSL_CTX_set_ciphersuites(c, "TLS_AES_128_GCM_SHA256"))
        die("client context");
    SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION);
    return c;
}

static SSL_CTX *server_context(void)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    SSL_CTX *c = SSL_CTX_new(TLS_server_method());
    if (!key || !cert || !c)
        die("server context");
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(cert), 86400);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC, (unsigned char *)"load", -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(cert));
    if (!X509_sign(cert, key, EVP_sha256()) || SSL_CTX_use_certificate(c, cert) != 1 || SSL_CTX_use_PrivateKey(c, key) != 1)
        die("certificate");
    SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION);
    SSL_CTX_set_num_tickets(c, 0);
    return c;
}

static struct line memory_line(void)
{
    struct line l = {SSL_new(client_context()), SSL_new(server_context())};
    BIO *near, *far;
    if (!BIO_new_bio_pair(&near, 4 * LARGEST, &far, 4 * LARGEST))
        die("BIO pair");
    SSL_set_bio(l.writer, near, near);
    SSL_set_bio(l.reader, far, far);
    SSL_set_connect_state(l.writer);
    SSL_set_accept_state(l.reader);
    for (int turn = 0; turn < 10; turn++)
        if ((SSL_do_handshake(l.writer) == 1) & (SSL_do_handshake(l.reader) == 1))
            return l;
    die("handshake");
    return l;
}

static void no_delay(int fd)
{
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
}

static struct line loopback_line(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
        die("connect");
    no_delay(fd);
    SSL *s = SSL_new(client_context());
    SSL_set_fd(s, fd);
    if (SSL_connect(s) != 1)
        die("handshake");
    return (struct line){s, s};
}

static void serve(int echo)
{
    SSL_CTX *context = server_context();
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof at;
    if (listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4)
        || getsockname(listener, (struct sockaddr *)&at, &length))
        die("listen");
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    for (int fd; (fd = accept(listener, NULL, NULL)) >= 0; close(fd)) {
        alarm(LONGEST_WAIT_S);
        no_delay(fd);
        SSL *s = SSL_new(context);
        SSL_set_fd(s, fd);
        int n = SSL_accept(s) == 1 ? SSL_read(s, received, sizeof received) : 0;
        while (n > 0 && (!echo || SSL_write(s, received, n) == n))
            n = SSL_read(s, received, sizeof received);
        SSL_free(s);
        ERR_clear_error();
    }
}

static void write_all(SSL *s, const unsigned char *bytes, size_t size)
{
    if (SSL_write(s, bytes, (int)size) != (int)size)
        die("SSL_write");
}

static void read_all(SSL *s, size_t size)
{
    for (size_t got = 0; got < size;) {
        int n = SSL_read(s, received + got, (int)(size - got));
        if (n <= 0)
            die("SSL_read");
        got += n;
    }
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_sha256(const struct order *o, uint64_t pairs)
{
    EVP_MD_CTX *sum = EVP_MD_CTX_new();
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    if (!sum || !EVP_DigestInit_ex(sum, EVP_sha256(), NULL))
        die("SHA-256");
    for (uint64_t n = 0; n < pairs; n++)
        EVP_DigestUpdate(sum, content(o, n), o->size);
    EVP_DigestFinal_ex(sum, digest, &length);
    EVP_MD_CTX_free(sum);
    printf(",\"sha256\":\"");
    for (unsigned i = 0; i < length; i++)
        printf("%02x", digest[i]);
    printf("\"");
}

// Pairs between two looks at the clock: few system calls at full speed, at most 2,000 wake-ups a second when paced.
static uint64_t block_length(const struct order *o)
{
    if (!o->rate)
        return o->size > 4096 ? 16 : 64;
    return o->rate > 2000 ? o->rate / 2000 : 1;
}

// Of what is sorted, between its lowest and its highest tenth.
static double middle(const float *sorted, uint64_t count)
{
    double sum = 0;
    for (uint64_t i = count / 10; i < count - count / 10; i++)
        sum += sorted[i];
    return sum / (count - 2 * (count / 10));
}

static void run(struct line l, const struct order *o)
{
    uint64_t pairs = 0, all_ns = 0, cpu_ns = 0, quiet = 0, disturbed = 0, block = block_length(o);
    uint64_t start = now(), end = o->ms ? start + o->ms * 1000000 : UINT64_MAX, t1 = start;
    while (pairs < o->pairs && t1 < end) {
        uint64_t length = block < o->pairs - pairs ? block : o->pairs - pairs;
        if (o->rate)
            sleep_until(start + pairs * SECOND / o->rate);
        long before = preemptions();
        uint64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID), t0 = now();
        for (uint64_t stop = pairs + length; pairs < stop; pairs++) {
            const unsigned char *bytes = content(o, pairs);
            write_all(l.writer, bytes, o->size);
            if (o->one_way)
                continue;
            read_all(l.reader, o->size);
            if (o->hash && memcmp(bytes, received, o->size))
                die("comparing what was read with what was written");
        }
        t1 = now();
        cpu_ns += clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
        all_ns += t1 - t0;
        if (preemptions() != before) {
            disturbed++;
            continue;
        }
        if (quiet < MOST_BLOCKS)
            blocks[quiet++] = (float)(t1 - t0) / length;
    }
    qsort(blocks, quiet, sizeof blocks[0], ascending);
    double mean = quiet ? middle(blocks, quiet) : (double)all_ns / pairs;
    printf("{\"pairs\":%lu,\"bytes\":%lu,\"wall_ns\":%lu,\"disturbed\":%lu,\"mean_ns\":%.1f,\"cpu_ns\":%.1f", pairs,
           pairs * o->size * (o->one_way ? 1 : 2), t1 - start, disturbed, mean, (double)cpu_ns / pairs);
    if (o->hash)
        print_sha256(o, pairs);
    printf("}\n");
}

// Sees the breakpoints themselves: whoever places them, and whatever it says about it.
static void map(const char *path, char *offsets)
{
    enum { INT3 = 0xcc, MOST = 8 };
    const volatile unsigned char *sites[MOST];
    int fd = open(path, O_RDONLY | O_CLOEXEC), count = 0;
    off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    uint64_t start = now();
    unsigned char *base = size > 0 ? mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    if (base == MAP_FAILED)
        die("mapping a library");
    for (char *o = strtok(offsets, ","); o && count < MOST; o = strtok(NULL, ","))
        if (strtol(o, NULL, 0) < size)
            sites[count++] = base + strtol(o, NULL, 0);
    int probed = 0;
    while (probed < count && now() - start < 5 * SECOND) {
        if (*sites[probed] == INT3)
            probed++;
        else
            usleep(50);
    }
    printf("{\"probed\":%s,\"ns\":%lu}\n", count && probed == count ? "true" : "false", now() - start);
    munmap(base, size);
    close(fd);
}

static void obey(struct line l, char *command)
{
    struct order o = {.pairs = UINT64_MAX};
    char *verb = strtok(command, " \n"), *path = "", *at = "";
    for (char *option; (option = strtok(NULL, " \n"));) {
        char *value = strchr(option, '=');
        if (!value)
            die(option);
        *value++ = 0;
        uint64_t number = strtoull(value, NULL, 0);
        if (!strcmp(option, "size")) o.size = number;
        else if (!strcmp(option, "pairs")) o.pairs = number;
        else if (!strcmp(option, "ms")) o.ms = number;
        else if (!strcmp(option, "rate")) o.rate = number;
        else if (!strcmp(option, "oneway")) o.one_way = number;
        else if (!strcmp(option, "text")) o.text = number;
        else if (!strcmp(option, "hash")) o.hash = number;
        else if (!strcmp(option, "path")) path = value;
        else if (!strcmp(option, "at")) at = value;
        else die(option);
    }
    if (verb && !strcmp(verb, "map"))
        return map(path, at);
    if (!verb || strcmp(verb, "run") || !o.size || o.size > LARGEST || !o.pairs || (o.pairs == UINT64_MAX && !o.ms))
        die("understanding a command");
    run(l, &o);
}

static void obey_all(struct line l)
{
    char command[4096];
    puts("ready");
    while (fflush(stdout), fgets(command, sizeof command, stdin)) {
        alarm(LONGEST_WAIT_S);
        obey(l, command);
    }
}

static void once(struct line l)
{
    write_all(l.writer, prose, 64);
    read_all(l.reader, 64);
    sleep(1);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    alarm(LONGEST_WAIT_S);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1000);
    signal(SIGPIPE, SIG_IGN);
    fill_content();
    if (!strcmp(mode, "memory"))
        obey_all(memory_line());
    else if (!strcmp(mode, "client") && argc > 2)
        obey_all(loopback_line(atoi(argv[2])));
    else if (!strcmp(mode, "echo") || !strcmp(mode, "sink"))
        serve(!strcmp(mode, "echo"));
    else if (!strcmp(mode, "once"))
        once(argc > 2 ? loopback_line(atoi(argv[2])) : memory_line());
    else
        return fprintf(stderr, "usage: load memory | client PORT | echo | sink | once [PORT]\n"), 2;
    return 0;
}
