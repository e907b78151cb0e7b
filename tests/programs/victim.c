// A client whose buffer is gone when its SSL_write returns: the write BIO takes the pages away.
//
// usage: victim uffd|pageout
//   uffd     the pages belong to a userfaultfd that nobody serves: who touches them sleeps for ever
//   pageout  the pages of a file, given up by MADV_PAGEOUT
// Exit status 77: this can't be done here.
#include "tls.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { LENGTH = 8192, SIZE = 6000 };

static unsigned char *buffer;
static int armed, uffd;

static long take_away(BIO *bio, int operation, const char *data, size_t size, int argi, long argl, int result,
                      size_t *processed) {
    (void)bio, (void)data, (void)size, (void)argi, (void)argl, (void)processed;
    if (operation == (BIO_CB_WRITE | BIO_CB_RETURN) && armed) {
        armed = 0;
        CHECK(madvise(buffer, LENGTH, uffd ? MADV_DONTNEED : MADV_PAGEOUT) == 0);
    }
    return result;
}

static int resident(void) {
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    uint64_t entries[LENGTH / 4096];
    CHECK(fd >= 0 && pread(fd, entries, sizeof entries, (uintptr_t)buffer / 4096 * 8) == sizeof entries);
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
    buffer = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(buffer != MAP_FAILED);
    fill(buffer, LENGTH, 77);
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd < 0)
        _exit(77);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.range = {(uintptr_t)buffer, LENGTH}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    CHECK(ioctl(fd, UFFDIO_API, &api) == 0 && ioctl(fd, UFFDIO_REGISTER, &range) == 0);
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    prepare();
    uffd = strcmp(arguments[1], "uffd") == 0;
    SSL_CTX *client = client_context(), *server = server_context();
    struct pair pair = pair_new(client, server, 0);
    pair_handshake(&pair);
    BIO_set_callback_ex(SSL_get_wbio(pair.client), take_away);
    unsigned char data[SIZE], copy[LENGTH];
    for (int turn = 0; turn < 50; turn++) {
        fill(data, sizeof data, turn + 1);
        write_all(pair.client, &pair.client_truth, data, sizeof data);
        if (turn % 10 == 5 && (turn == 5 || !uffd)) {
            if (buffer)
                munmap(buffer, LENGTH);
            if (uffd)
                map_userfault();
            else
                map_file();
            memcpy(copy, buffer, LENGTH);
            armed = 1;
            size_t written = 0;
            TLS_CHECK(SSL_write_ex(pair.client, buffer, SIZE, &written) == 1 && written == SIZE);
            CHECK(!armed);
            if (resident())
                _exit(77);
            // The buffer can't be read any more, its copy can.
            note(pair.client_truth.sent, copy, SIZE);
            read_all(pair.server, &pair.server_truth, SIZE);
        }
        read_all(pair.server, &pair.server_truth, sizeof data);
    }
    pair_free(&pair);
    return 0;
}
