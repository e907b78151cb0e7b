// What a machine does in months, in minutes: `cargo xtask bench soak` drives it. Processes, control groups, libraries
// and connections come and go; `soak_talk.c` is what speaks TLS.
//
// usage: soak drive SECONDS DIRECTORY [GROUP ID]
//        soak part DIRECTORY HOW SEED MILLISECONDS
//
// DIRECTORY has `talk.so`, and in `shared` libssl and libcrypto. GROUP is a control group, in which the driver makes
// one for each container, whose id begins with the 16 digits of ID. It ends with a line of JSON that says how much has
// come and gone.
#include "soak.h"
#include <dlfcn.h>
#include <sys/sendfile.h>
#include <sys/wait.h>
#include <time.h>

enum {
    TALKERS = 2,          // that live as long as the driver
    MOST = 8,             // others at once; each has one child at most
    LIBRARY_EVERY_MS = 200,
};

static const char *directory, *group, *group_id;
static struct counts *counts;

static uint64_t now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000ull + time.tv_nsec / 1000000;
}

#define TEXT(buffer, ...) CHECK(snprintf(buffer, sizeof buffer, __VA_ARGS__) < (int)sizeof buffer)

// A process with OpenSSL, sooner or later.
static int part(enum how how, unsigned seed, unsigned milliseconds) {
    char path[512];
    TEXT(path, "%s/talk.so", directory);
    if (how == LATE)
        usleep(30000);
    void *library = dlopen(path, RTLD_NOW);
    if (!library)
        fprintf(stderr, "soak: %s\n", dlerror());
    CHECK(library);
    talk_function *talk = (talk_function *)dlsym(library, "talk");
    CHECK(talk);
    int result = talk(counts, how, seed, milliseconds);
    if (how != EXECED)
        return result;
    char number[16];
    TEXT(number, "%u", seed + 1);
    counts->execs++;
    execl("/proc/self/exe", "soak", "part", directory, "0", number, "0", NULL);
    CHECK(!"exec");
    return 1;
}

static void copy(const char *from, const char *to) {
    int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
    struct stat status;
    CHECK(in >= 0 && out >= 0 && fstat(in, &status) == 0);
    for (off_t at = 0; at < status.st_size;)
        CHECK(sendfile(out, in, &at, status.st_size - at) > 0);
    close(in);
    close(out);
}

// A child, and what it leaves.
struct child {
    pid_t pid;
    int has_library, has_group;
    uint64_t forget_at;
    char library[400], group[400];
};

static void forget_library(struct child *child) {
    if (!child->has_library)
        return;
    char path[512];
    TEXT(path, "%s/libssl.so.3", child->library);
    CHECK(unlink(path) == 0 && rmdir(child->library) == 0);
    child->has_library = 0;
}

static void reap(struct child *child) {
    int status;
    pid_t ended = waitpid(child->pid, &status, WNOHANG);
    CHECK(ended >= 0);
    if (!ended)
        return;
    if (WIFSIGNALED(status))
        CHECK(WTERMSIG(status) == SIGKILL);
    else
        CHECK(WEXITSTATUS(status) == 0);
    forget_library(child);
    for (int turn = 0; child->has_group && rmdir(child->group) != 0; turn++) {
        CHECK(errno == EBUSY && turn < 1000);
        usleep(1000);
    }
    child->pid = 0;
}

// `forever` is how long a talker lives; 0: everybody else.
static void start(struct child *child, unsigned seed, int with_library, unsigned forever) {
    memset(child, 0, sizeof *child);
    enum how how = forever ? WHOLE : seed % HOWS;
    char path[512], from[512], libraries[1024];
    TEXT(libraries, "%s/shared", directory);
    if (with_library) {
        TEXT(child->library, "%s/library-%u", directory, seed);
        CHECK(mkdir(child->library, 0755) == 0);
        TEXT(from, "%s/shared/libssl.so.3", directory);
        TEXT(path, "%s/libssl.so.3", child->library);
        copy(from, path);
        TEXT(libraries, "%s:%s/shared", child->library, directory);
        child->has_library = 1;
        // Before anybody can look at it, while it is used, or with its process.
        child->forget_at = now_ms() + 40 * (seed / HOWS % 10);
        counts->libraries++;
    }
    if (group && !forever && seed % 3 == 0) {
        char id[65];
        TEXT(id, "%.16s%048x", group_id, seed + 1);
        TEXT(child->group, "%s/docker-%s.scope", group, id);
        CHECK(mkdir(child->group, 0755) == 0);
        child->has_group = 1;
        counts->groups++;
    }
    pid_t parent = getpid();
    child->pid = fork();
    CHECK(child->pid >= 0);
    if (child->pid) {
        counts->processes++;
        return;
    }
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    if (getppid() != parent)
        _exit(1);
    if (child->has_group) {
        TEXT(path, "%s/cgroup.procs", child->group);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        CHECK(fd >= 0 && write(fd, "0", 1) == 1);
        close(fd);
    }
    CHECK(setenv("LD_LIBRARY_PATH", libraries, 1) == 0);
    char how_text[16], seed_text[16], time_text[16];
    TEXT(how_text, "%d", how);
    TEXT(seed_text, "%u", seed);
    // Long enough for a new library to be probed.
    TEXT(time_text, "%u", forever ? forever : with_library ? 300 : 0);
    counts->execs++;
    execl("/proc/self/exe", "soak", "part", directory, how_text, seed_text, time_text, NULL);
    _exit(1);
}

static void drive(unsigned seconds) {
    struct child talkers[TALKERS], others[MOST] = {0};
    uint64_t end = now_ms() + seconds * 1000ull, next_library = 0;
    unsigned seed = 0;
    for (int at = 0; at < TALKERS; at++)
        start(&talkers[at], 1000000000u * (at + 1), 0, seconds * 1000);
    while (now_ms() < end) {
        for (int at = 0; at < MOST; at++) {
            struct child *child = &others[at];
            if (child->pid)
                reap(child);
            uint64_t now = now_ms();
            if (child->pid) {
                if (child->has_library && now >= child->forget_at)
                    forget_library(child);
                continue;
            }
            int with_library = now >= next_library;
            if (with_library)
                next_library = now + LIBRARY_EVERY_MS;
            start(child, seed++, with_library, 0);
        }
        usleep(1000);
    }
    for (int at = 0; at < MOST; at++)
        for (; others[at].pid; usleep(1000))
            reap(&others[at]);
    for (int at = 0; at < TALKERS; at++)
        for (; talkers[at].pid; usleep(1000))
            reap(&talkers[at]);
    printf("{\"connections\":%lu,\"processes\":%lu,\"execs\":%lu,\"killed\":%lu,\"threads\":%lu,\"libraries\":%lu,"
           "\"groups\":%lu}\n",
           counts->connections, counts->processes, counts->execs, counts->killed, counts->threads, counts->libraries,
           counts->groups);
}

int main(int count, char **arguments) {
    CHECK(count >= 4);
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    signal(SIGPIPE, SIG_IGN);
    char path[512];
    if (strcmp(arguments[1], "drive") == 0) {
        unsigned seconds = atoi(arguments[2]);
        CHECK(seconds > 0 && seconds <= 24 * 3600);
        alarm(seconds + 60);
        directory = arguments[3];
        CHECK(count == 4 || count == 6);
        group = count == 6 ? arguments[4] : NULL;
        group_id = count == 6 ? arguments[5] : NULL;
        TEXT(path, "%s/counts", directory);
        counts = counts_open(path);
        drive(seconds);
        return 0;
    }
    CHECK(count == 6 && strcmp(arguments[1], "part") == 0);
    directory = arguments[2];
    TEXT(path, "%s/counts", directory);
    counts = counts_open(path);
    unsigned milliseconds = atoi(arguments[5]);
    alarm(60 + milliseconds / 1000);
    return part(atoi(arguments[3]), strtoul(arguments[4], NULL, 10), milliseconds);
}
