// A FUSE file system with one file, which stops answering; and a process that maps it as code.
//
//   silent serve DIR FILE MODE    mounts it on DIR, in a mount namespace of its own, with FILE's size;
//                                 MODE: "reads" answers no read before SIGUSR1, "all" answers nothing any
//                                 more once the first opener has closed the file
//   silent map PID PATH MS        maps PATH in the namespace of PID and watches the clock for MS
//                                 milliseconds; prints the longest pause in milliseconds
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void must(int ok, const char *what) {
    if (ok)
        return;
    perror(what);
    exit(1);
}

static void answer(int fuse, uint64_t unique, int error, const void *body, size_t size) {
    struct fuse_out_header head = {sizeof head + (error ? 0 : size), -error, unique};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)body, error ? 0 : size}};
    // The asker may have been interrupted.
    if (writev(fuse, parts, 2) < 0 && errno != ENOENT)
        must(0, "answer");
}

static struct fuse_attr attributes(uint64_t node, uint64_t size) {
    struct fuse_attr attr = {.ino = node, .nlink = 1, .blksize = 4096};
    attr.mode = node == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0755;
    attr.size = node == FUSE_ROOT_ID ? 0 : size;
    return attr;
}

static volatile sig_atomic_t speaks;

static void speak(int signal) {
    (void)signal;
    speaks = 1;
}

struct question {
    uint64_t unique;
    struct fuse_read_in read;
};

static void answer_read(int fuse, int file, struct question asked) {
    static char bytes[1 << 20];
    size_t wanted = asked.read.size < sizeof bytes ? asked.read.size : sizeof bytes;
    ssize_t length = pread(file, bytes, wanted, asked.read.offset);
    must(length >= 0, "read the file");
    answer(fuse, asked.unique, 0, bytes, length);
}

static void serve(const char *dir, const char *path, const char *mode) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat stat_of_file;
    must(file >= 0 && fstat(file, &stat_of_file) == 0, path);
    uint64_t size = stat_of_file.st_size;
    int all = strcmp(mode, "all") == 0, closed = 0;
    struct question waiting[64];
    unsigned count = 0;
    // Not SA_RESTART: it interrupts the wait for requests.
    struct sigaction action = {.sa_handler = speak};
    must(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");

    must(unshare(CLONE_NEWNS) == 0, "unshare");
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "make mounts private");
    int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    must(fuse >= 0, "/dev/fuse");
    char options[100];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fuse);
    must(mount("silent", dir, "fuse.silent", 0, options) == 0, "mount");
    puts("mounted");
    fflush(stdout);

    static char request[1 << 20];
    for (;;) {
        ssize_t length = read(fuse, request, sizeof request);
        while (speaks && count > 0)
            answer_read(fuse, file, waiting[--count]);
        if (length < 0 && (errno == EINTR || errno == ENOENT))
            continue;
        must(length >= (ssize_t)sizeof(struct fuse_in_header), "read a request");
        struct fuse_in_header *in = (void *)request;
        if (all && closed)
            continue;
        switch (in->opcode) {
        case FUSE_INIT: {
            struct fuse_init_out out = {.major = 7, .minor = 31, .max_write = 4096, .max_readahead = 4096};
            answer(fuse, in->unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_LOOKUP: {
            struct fuse_entry_out out = {.nodeid = 2, .entry_valid = 60, .attr_valid = 60};
            out.attr = attributes(2, size);
            answer(fuse, in->unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_GETATTR: {
            struct fuse_attr_out out = {.attr_valid = 60, .attr = attributes(in->nodeid, size)};
            answer(fuse, in->unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_OPEN: {
            struct fuse_open_out out = {0};
            answer(fuse, in->unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_FLUSH:
            answer(fuse, in->unique, 0, NULL, 0);
            closed = 1;
            break;
        case FUSE_RELEASE:
            answer(fuse, in->unique, 0, NULL, 0);
            break;
        case FUSE_STATFS: {
            struct fuse_statfs_out out = {.st = {.bsize = 4096, .namelen = 255}};
            answer(fuse, in->unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_READ: {
            struct question asked = {in->unique, *(struct fuse_read_in *)(in + 1)};
            if (speaks)
                answer_read(fuse, file, asked);
            else if (count < sizeof waiting / sizeof *waiting)
                waiting[count++] = asked;
            break;
        }
        case FUSE_FORGET:
        case FUSE_BATCH_FORGET:
        case FUSE_INTERRUPT:
            break;
        default:
            answer(fuse, in->unique, ENOSYS, NULL, 0);
        }
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static void map(const char *server, const char *path, double limit) {
    char name[64];
    snprintf(name, sizeof name, "/proc/%s/ns/mnt", server);
    int namespace = open(name, O_RDONLY | O_CLOEXEC);
    must(namespace >= 0 && setns(namespace, CLONE_NEWNS) == 0, "enter the namespace");
    int file = open(path, O_RDONLY | O_CLOEXEC);
    must(file >= 0, path);
    void *code = mmap(NULL, 1 << 16, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
    must(code != MAP_FAILED, "mmap");
    close(file);
    double start = now(), last = start, longest = 0;
    while (last < start + limit) {
        usleep(500);
        double at = now();
        if (at - last > longest)
            longest = at - last;
        last = at;
    }
    printf("%.0f\n", longest);
}

int main(int argc, char **argv) {
    alarm(120);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc == 5 && strcmp(argv[1], "serve") == 0)
        serve(argv[2], argv[3], argv[4]);
    else if (argc == 5 && strcmp(argv[1], "map") == 0)
        map(argv[2], argv[3], atof(argv[4]));
    else
        return 2;
    return 0;
}
