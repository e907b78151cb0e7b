"""gRPC-Web as text, over TLS and HTTP/1.1: frames in base64, and the trailers as the last of them.

usage: grpc_web.py serve DIR CERT KEY        the port is in DIR/grpc_web.port
       grpc_web.py ask DIR PORT CALLS

A line of DIR/grpc_web.served is one call as JSON, as the server had it, and of DIR/grpc_web.asked the same call as the
client had it: service, method, sent and received (the lengths of messages), status and message.
"""

import base64
import ctypes
import http.client
import http.server
import json
import os
import random
import signal
import ssl
import struct
import sys
import urllib.parse

TRAILERS = 0x80


def frame(message, flags=0):
    return struct.pack(">BI", flags, len(message)) + message


def frames(body):
    """Flags and messages."""
    found = []
    while body:
        flags, length = struct.unpack(">BI", body[:5])
        found.append((flags, body[5 : 5 + length]))
        assert len(found[-1][1]) == length
        body = body[5 + length :]
    return found


def decoded(text):
    """Parts that were padded each by itself."""
    body = b""
    for at in range(0, len(text), 4):
        body += base64.b64decode(text[at : at + 4], validate=True)
    return body


class Log:
    def __init__(self, directory, name):
        self.file = open(os.path.join(directory, "grpc_web." + name), "w", buffering=1)

    def call(self, path, sent, received, status, message):
        _, service, method = path.split("/")
        said = {"service": service, "method": method, "sent": sent, "received": received}
        self.file.write(json.dumps(said | {"status": status, "message": message}) + "\n")


def answers(path, message):
    """What comes back of a message, and how the call ends."""
    if path.startswith("/e2e.Echo/Stream"):
        return [message * (1 + number) for number in range(4)], 0, ""
    if path.startswith("/e2e.Echo/Fail"):
        return [], 5, "kein Fund: 100 % \u00e4"
    return [message], 0, ""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        text = self.rfile.read(int(self.headers["content-length"]))
        [(_, asked)] = frames(decoded(text))
        messages, status, why = answers(self.path, asked)
        self.send_response(200)
        self.send_header("content-type", "application/grpc-web-text+proto")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        trailers = "grpc-status:%d\r\n" % status
        if why:
            trailers += "grpc-message:%s\r\n" % urllib.parse.quote(why)
        parts = [frame(message) for message in messages] + [frame(trailers.encode(), TRAILERS)]
        for part in parts:
            text = base64.b64encode(part)
            # A group of four digits in two chunks.
            for piece in (text[:5], text[5:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")
        LOG.call(self.path, [len(asked)], list(map(len, messages)), status, why)

    def log_message(self, *_):
        pass


def serve(directory, cert, key):
    global LOG
    LOG = Log(directory, "served")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    port = os.path.join(directory, "grpc_web.port")
    with open(port + ".new", "w") as file:
        file.write("%d\n" % server.server_address[1])
    os.rename(port + ".new", port)
    server.serve_forever()


def ask(directory, port, calls):
    log = Log(directory, "asked")
    rng = random.Random(7)
    context = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection("127.0.0.1", int(port), context=context, timeout=60)
    headers = {"content-type": "application/grpc-web-text", "accept": "application/grpc-web-text"}
    for number in range(int(calls)):
        # Each name once, so that the logs can be joined.
        path = "/e2e.Echo/%s%d" % (rng.choice(["One", "Stream", "Fail"]), number)
        message = rng.randbytes(rng.choice([0, 1, 2, 3, 1000, 20_000]))
        connection.request("POST", path, base64.b64encode(frame(message)), headers)
        *got, (flags, trailers) = frames(decoded(connection.getresponse().read()))
        assert flags == TRAILERS and all(flags == 0 for flags, _ in got)
        fields = dict(line.split(":", 1) for line in trailers.decode().split("\r\n") if line)
        why = urllib.parse.unquote(fields.get("grpc-message", ""))
        sizes = [len(message) for _, message in got]
        log.call(path, [len(message)], sizes, int(fields["grpc-status"]), why)
    connection.close()


ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.alarm(int(os.environ.get("E2E_SECONDS", "60")) * 2)
{"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
