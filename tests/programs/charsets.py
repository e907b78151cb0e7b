"""Text in other encodings than UTF-8, over TLS and HTTP/1.1: what each body was as text is written down.

usage: charsets.py DIR CERT KEY

The port is in DIR/charsets.port. GET /N answers the Nth body; a line of DIR/charsets.exchanges is one of them as JSON:
path, encoding as the Encoding Standard calls it, text, and how many bytes it was without content coding.
"""

import ctypes
import gzip
import http.server
import json
import os
import signal
import ssl
import sys

# The media type, how Python calls the encoding, what the Encoding Standard calls it, the text.
BODIES = [
    ("text/plain; charset=ISO-8859-1", "iso-8859-1", "windows-1252", "na\u00efve caf\u00e9 \u00a3 5\n"),
    ('text/html;charset="iso-8859-1"', "cp1252", "windows-1252", "<p>\u20ac \u201cquoted\u201d\n"),
    ("text/plain; charset=UTF-16", "utf-16", "UTF-16LE", "with a mark: \u65e5\u672c \U0001f600\n"),
    ("application/json; charset=utf-16be", "utf-16-be", "UTF-16BE", '{"name": "\u4e2d\u6587"}\n'),
    ("text/plain; charset=utf-16le", "utf-16-le", "UTF-16LE", "without one: \u00e9 \u2603\n"),
    ("text/plain; charset=Shift_JIS", "shift_jis", "Shift_JIS", "\u6f22\u5b57\u3068\u30ab\u30ca \\ \uff76\n"),
    ("text/csv; header=present; charset=shift-jis", "shift_jis", "Shift_JIS", "\u8868,\u30bd\n" * 3000),
    ("text/plain; charset=utf-8", "utf-8", None, "as it is: \u00e9\n"),
]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        number = int(self.path[1:])
        media, encoding, name, text = BODIES[number % len(BODIES)]
        text = "%d: " % number + text
        body = text.encode(encoding)
        line = {"path": self.path, "encoding": name, "text": text, "length": len(body)}
        self.send_response(200)
        self.send_header("content-type", media)
        if number // len(BODIES) % 2:
            body = gzip.compress(body)
            self.send_header("content-encoding", "gzip")
        if number % 3:
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            # Of an odd length, so that characters are cut.
            for at in range(0, len(body), 4097):
                piece = body[at : at + 4097]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        LOG.write(json.dumps(line) + "\n")

    def log_message(self, *_):
        pass


ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.alarm(int(os.environ.get("E2E_SECONDS", "60")) * 2)
directory, cert, key = sys.argv[1:]
LOG = open(os.path.join(directory, "charsets.exchanges"), "w", buffering=1)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
port = os.path.join(directory, "charsets.port")
with open(port + ".new", "w") as file:
    file.write("%d\n" % server.server_address[1])
os.rename(port + ".new", port)
server.serve_forever()
