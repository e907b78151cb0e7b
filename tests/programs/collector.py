"""A collector of OTLP over HTTP that keeps each request.

usage: collector.py DIR NAME [tls]   writes DIR/NAME.port, and of each request DIR/NAME-NUMBER.SIGNAL: what was sent
"""

import ctypes
import gzip
import http.server
import itertools
import os
import signal
import ssl
import sys

directory, name, *how = sys.argv[1:]
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
signal.alarm(int(os.environ.get("E2E_SECONDS", "60")))
base = os.path.join(directory, name)
numbers = itertools.count()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        path = "%s-%d.%s" % (base, next(numbers), self.path.rsplit("/", 1)[1])
        with open(path + ".new", "wb") as file:
            file.write(body)
        os.rename(path + ".new", path)
        self.answer(b"")

    def do_GET(self):
        self.answer(b"here\n")

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
if how:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.environ["E2E_CERT"], os.environ["E2E_KEY"])
    server.socket = context.wrap_socket(server.socket, server_side=True)
with open(base + ".port.new", "w") as file:
    file.write("%d\n" % server.server_port)
os.rename(base + ".port.new", base + ".port")
server.serve_forever()
