// A GnuTLS client that writes in every way, on one connection after the other.
//
// usage: gnutls PORT
#include "common.h"
#include <gnutls/gnutls.h>

// The result of a call that may say "again": a session ticket came instead of data.
#define TLS(call)                                                                                  \
    ({                                                                                             \
        ssize_t result;                                                                            \
        do                                                                                         \
            result = (call);                                                                       \
        while (result == GNUTLS_E_AGAIN || result == GNUTLS_E_INTERRUPTED);                        \
        if (result < 0) {                                                                          \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, gnutls_strerror(result)); \
            _exit(91);                                                                             \
        }                                                                                          \
        result;                                                                                    \
    })

enum way { PLAIN, SECOND, RANGE, CORKED, WAYS };
enum { UP = 150001, DOWN = 120007 };

static size_t send_piece(gnutls_session_t session, enum way way, const unsigned char *data, size_t size) {
    gnutls_range_st range = {.low = size, .high = size};
    switch (way) {
    case SECOND:
        return TLS(gnutls_record_send2(session, data, size, 0, 0));
    case RANGE:
        return TLS(gnutls_record_send_range(session, data, size, &range));
    default:
        return TLS(gnutls_record_send(session, data, size));
    }
}

static void up(gnutls_session_t session, enum way way, struct truth truth) {
    static unsigned char data[UP + 16];
    fill(data, sizeof data, way + 1);
    big_endian(data, UP);
    big_endian(data + 8, DOWN);
    if (way == CORKED)
        gnutls_record_cork(session);
    for (size_t at = 0, step = 1; at < sizeof data; step = step * 3 + 1) {
        size_t size = sizeof data - at < step ? sizeof data - at : step;
        size_t sent = send_piece(session, way, data + at, size);
        note(truth.sent, data + at, sent);
        at += sent;
    }
    // Sent only now, in one go.
    if (way == CORKED)
        CHECK(TLS(gnutls_record_uncork(session, GNUTLS_RECORD_WAIT)) == sizeof data);
}

static void down(gnutls_session_t session, enum way way, struct truth truth) {
    static unsigned char data[20000], sequence[8];
    for (size_t left = DOWN; left;) {
        size_t size = left < sizeof data ? left : sizeof data;
        size_t got = way % 2 ? TLS(gnutls_record_recv_seq(session, data, size, sequence))
                             : TLS(gnutls_record_recv(session, data, size));
        CHECK(got);
        note(truth.received, data, got);
        left -= got;
    }
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    prepare();
    gnutls_certificate_credentials_t credentials;
    TLS(gnutls_certificate_allocate_credentials(&credentials));
    for (int number = 0; number < 3; number++) {
        gnutls_session_t session;
        TLS(gnutls_init(&session, GNUTLS_CLIENT));
        TLS(gnutls_set_default_priority(session));
        TLS(gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials));
        int fd = connect_to(atoi(arguments[1]));
        gnutls_transport_set_int(session, fd);
        TLS(gnutls_handshake(session));
        struct truth truth = truth_open("gnutls", number);
        for (enum way way = PLAIN; way < WAYS; way++) {
            up(session, way, truth);
            down(session, way, truth);
        }
        TLS(gnutls_bye(session, GNUTLS_SHUT_WR));
        close(fd);
        gnutls_deinit(session);
    }
    gnutls_certificate_free_credentials(credentials);
    return 0;
}
