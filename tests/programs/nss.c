// Both ends of NSS connections, by all of NSPR's ways to write and to read. A pipe has the same functions and no TLS:
// nothing of it may be seen.
#include "ends.h"
#include <keyhi.h>
#include <nspr.h>
#include <nss.h>
#include <nssb64.h>
#include <pk11pub.h>
#include <private/pprio.h>
#include <ssl.h>
#include <sslproto.h>

#define NSS(condition)                                                                             \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: %d\n", __FILE__, __LINE__, #condition, PR_GetError());     \
            _exit(91);                                                                             \
        }                                                                                          \
    } while (0)

static CERTCertificate *certificate;
static SECKEYPrivateKey *key;

static size_t counted(int result) {
    if (result > 0)
        return result;
    NSS(result < 0 && PR_GetError() == PR_WOULD_BLOCK_ERROR);
    return 0;
}

static SECStatus anybody(void *argument, PRFileDesc *fd, PRBool check, PRBool is_server) {
    (void)argument, (void)fd, (void)check, (void)is_server;
    return SECSuccess;
}

static void open_end(struct end *end) {
    PRFileDesc *tcp = PR_ImportTCPSocket(end->fd);
    PRSocketOptionData dont_wait = {.option = PR_SockOpt_Nonblocking, .value.non_blocking = PR_TRUE};
    NSS(tcp && PR_SetSocketOption(tcp, &dont_wait) == PR_SUCCESS);
    PRFileDesc *tls = SSL_ImportFD(NULL, tcp);
    NSS(tls && SSL_OptionSet(tls, SSL_SECURITY, PR_TRUE) == SECSuccess);
    NSS(SSL_OptionSet(tls, SSL_HANDSHAKE_AS_SERVER, end->is_server) == SECSuccess);
    NSS(SSL_OptionSet(tls, SSL_HANDSHAKE_AS_CLIENT, !end->is_server) == SECSuccess);
    NSS(SSL_AuthCertificateHook(tls, anybody, NULL) == SECSuccess);
    if (end->is_server)
        NSS(SSL_ConfigServerCert(tls, certificate, key, NULL, 0) == SECSuccess);
    else
        NSS(SSL_SetURL(tls, "localhost") == SECSuccess);
    NSS(SSL_ResetHandshake(tls, end->is_server) == SECSuccess);
    end->tls = tls;
}

static int shake(struct end *end) {
    if (SSL_ForceHandshake(end->tls) == SECSuccess)
        return 1;
    NSS(PR_GetError() == PR_WOULD_BLOCK_ERROR);
    return 0;
}

static size_t put(struct end *end, const void *data, size_t size) {
    PRIOVec halves[] = {{.iov_base = (char *)data, .iov_len = size / 2},
                        {.iov_base = (char *)data + size / 2, .iov_len = size - size / 2}};
    switch (size % 3) {
    case 0:
        return counted(PR_Write(end->tls, data, size));
    case 1:
        return counted(PR_Send(end->tls, data, size, 0, PR_INTERVAL_NO_TIMEOUT));
    default:
        return counted(PR_Writev(end->tls, halves, 2, PR_INTERVAL_NO_TIMEOUT));
    }
}

static size_t get(struct end *end, void *data, size_t size) {
    return counted(size % 2 ? PR_Read(end->tls, data, size)
                            : PR_Recv(end->tls, data, size, 0, PR_INTERVAL_NO_TIMEOUT));
}

static size_t look(struct end *end, void *data, size_t size) {
    return counted(PR_Recv(end->tls, data, size, PR_MSG_PEEK, PR_INTERVAL_NO_TIMEOUT));
}

static void close_end(struct end *end) {
    NSS(PR_Close(end->tls) == PR_SUCCESS);
}

// What stands between the lines of a PEM file.
static SECItem *body(const char *path) {
    static char text[16384];
    FILE *file = fopen(path, "r");
    CHECK(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    char *start = strstr(text, "-----BEGIN"), *end = strstr(text, "-----END");
    CHECK(start && end);
    start = strchr(start, '\n');
    SECItem *item = NSSBase64_DecodeBuffer(NULL, NULL, start, end - start);
    NSS(item);
    return item;
}

static void without_tls(void) {
    PRFileDesc *out, *in;
    char text[] = "no TLS", back[sizeof text];
    NSS(PR_CreatePipe(&out, &in) == PR_SUCCESS);
    NSS(PR_Write(in, text, sizeof text) == sizeof text);
    NSS(PR_Read(out, back, sizeof back) == sizeof back);
    PR_Close(in);
    PR_Close(out);
}

int main(void) {
    prepare();
    NSS(NSS_NoDB_Init(NULL) == SECSuccess && NSS_SetDomesticPolicy() == SECSuccess);
    certificate = CERT_NewTempCertificate(CERT_GetDefaultCertDB(), body(setting("E2E_CERT", "cert.pem")), NULL,
                                          PR_FALSE, PR_TRUE);
    NSS(certificate);
    PK11SlotInfo *slot = PK11_GetInternalKeySlot();
    NSS(PK11_ImportDERPrivateKeyInfoAndReturnKey(slot, body(setting("E2E_KEY", "key.pem")), NULL, NULL, PR_FALSE,
                                                 PR_TRUE, KU_ALL, &key, NULL) == SECSuccess);
    NSS(SSL_ConfigServerSessionIDCache(0, 0, 0, NULL) == SECSuccess);
    without_tls();
    converse_all();
    return 0;
}
