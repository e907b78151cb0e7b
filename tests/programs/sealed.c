// seccomp's strict mode: read, write, exit and the return from a signal, or death. A return probe ends by a system
// call that no program makes by itself (6.11 and later).
#include "tls.h"
#include <linux/seccomp.h>
#include <malloc.h>
#include <sys/syscall.h>

enum { ROUNDS = 10, SIZE = 10000 };

static void talk(struct pair *pair) {
    static unsigned char data[SIZE];
    for (int round = 1; round <= ROUNDS; round++) {
        fill(data, SIZE, round);
        write_all(pair->client, &pair->client_truth, data, SIZE);
        read_all(pair->server, &pair->server_truth, SIZE);
        write_all(pair->server, &pair->server_truth, data, SIZE / 2);
        read_all(pair->client, &pair->client_truth, SIZE / 2);
    }
}

int main(void) {
    prepare();
    // No memory can be asked for later.
    CHECK(mallopt(M_TOP_PAD, 16 << 20) == 1 && mallopt(M_TRIM_THRESHOLD, 64 << 20) == 1);
    SSL_CTX *client = client_context(), *server = server_context();
    struct pair pair = pair_new(client, server, 0);
    pair_handshake(&pair);
    talk(&pair);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
    talk(&pair);
    // glibc's ends the whole group, which is another call.
    syscall(SYS_exit, 0);
}
