// A client on BIO_new_ssl_connect: BIO_f_ssl calls none of libssl's exported reads and writes.
//
// usage: bio_connect PORT
#include "tls.h"

int main(int count, char **arguments) {
    CHECK(count == 2);
    prepare();
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%s", arguments[1]);
    BIO *bio = BIO_new_ssl_connect(client_context());
    TLS_CHECK(bio);
    BIO_set_conn_hostname(bio, address);
    TLS_CHECK(BIO_do_connect(bio) == 1);
    struct truth truth = truth_open("bio", 0);

    static unsigned char data[137870 + 16], back[20000];
    fill(data, sizeof data, 5);
    big_endian(data, sizeof data - 16);
    big_endian(data + 8, 137870);
    for (size_t at = 0, step = 16; at < sizeof data; step = step * 3 + 1) {
        size_t size = sizeof data - at < step ? sizeof data - at : step;
        int written = BIO_write(bio, data + at, (int)size);
        TLS_CHECK(written > 0);
        note(truth.sent, data + at, written);
        at += written;
    }
    for (size_t left = 137870; left;) {
        int got = BIO_read(bio, back, (int)(left < sizeof back ? left : sizeof back));
        TLS_CHECK(got > 0);
        note(truth.received, back, got);
        left -= got;
    }
    BIO_free_all(bio);
    return 0;
}
