// A client whose buffer is gone when its SSL_write returns: the write BIO takes the pages away.
//
// usage: victim uffd|pageout|large
//   uffd     the pages belong to a userfaultfd that nobody serves: who touches them sleeps for ever
//   pageout  the pages of a file, given up by MADV_PAGEOUT
//   large    as uffd, of a large buffer one page
// Exit status 77: this can't be done here.
#include "tls.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { LENGTH = 8192, SIZE = 6000, LARGE = 256 << 10, RECORD = 16 << 10, AWAY = 65536 + 4096 };

static unsigned char *buffer;
static size_t length = LENGTH, size = SIZE, away_at, away = LENGTH;
static int armed, uffd;

static long take_away(BIO *bio, int operation, const char *data, size_t bytes, int argi, long argl, int result,
                      size_t *processed) {
    (void)bio, (void)data, (void)bytes, (void)argi, (void)argl, (void)processed;
    if (operation == (BIO_CB_WRITE | BIO_CB_RETURN) && armed && --armed == 0) {
        CHECK(madvise(buffer + away_at, away, uffd ? MADV_DONTNEED : MADV_PAGEOUT) == 0);
    }
    return result;
}

static int resident(void) {
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    uint64_t entries[LENGTH / 4096] = {0};
    size_t bytes = away / 4096 * sizeof *entries;
    CHECK(fd >= 0 && pread(fd, entries, bytes, (uintptr_t)(buffer + away_at) / 4096 * 8) == (ssize_t)bytes);
    close(fd);
    return (entries[0] | entries[1]) >> 63;
}

static void map_file(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/pages", setting("E2E_DIR", "."));
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    unsigned char data[LENGTH];
    fill(data, sizeof data, 77);
    CHECK(fd >= 0 && write(fd, data, LENGTH) == LENGTH && fsync(fd) == 0);
    buffer = mmap(NULL, LENGTH, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(buffer != MAP_FAILED);
    close(fd);
}

static void map_userfault(void) {
    buffer = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(buffer != MAP_FAILED);
    fill(buffer, length, 77);
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd < 0)
        _exit(77);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.range = {(uintptr_t)buffer, length}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    CHECK(ioctl(fd, UFFDIO_API, &api) == 0 && ioctl(fd, UFFDIO_REGISTER, &range) == 0);
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    prepare();
    uffd = strcmp(arguments[1], "pageout") != 0;
    if (strcmp(arguments[1], "large") == 0) {
        length = size = LARGE;
        away_at = AWAY;
        away = 4096;
    }
    SSL_CTX *client = client_context(), *server = server_context();
    struct pair pair = pair_new(client, server, 0);
    pair_handshake(&pair);
    BIO_set_callback_ex(SSL_get_wbio(pair.client), take_away);
    static unsigned char data[SIZE], copy[LARGE];
    for (int turn = 0; turn < 50; turn++) {
        fill(data, sizeof data, turn + 1);
        write_all(pair.client, &pair.client_truth, data, sizeof data);
        if (turn % 10 == 5 && (turn == 5 || !uffd)) {
            if (buffer)
                munmap(buffer, length);
            if (uffd)
                map_userfault();
            else
                map_file();
            memcpy(copy, buffer, length);
            // After the last record, which has the end of the buffer.
            armed = (int)((size + RECORD - 1) / RECORD);
            size_t written = 0;
            TLS_CHECK(SSL_write_ex(pair.client, buffer, size, &written) == 1 && written == size);
            CHECK(!armed);
            if (resident())
                _exit(77);
            // The buffer can't be read any more, its copy can.
            note(pair.client_truth.sent, copy, size);
            read_all(pair.server, &pair.server_truth, size);
        }
        read_all(pair.server, &pair.server_truth, sizeof data);
    }
    pair_free(&pair);
    return 0;
}
