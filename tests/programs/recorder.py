"""An HTTP/1.1 client that writes down what it really sent and received, as server.py does.

usage: recorder.py DIR NAME PORT REQUEST…   REQUEST: "GET /path" or "PUT /path BYTES"
"""

import ctypes
import os
import random
import signal
import socket
import ssl
import sys

directory, name, port, *requests = sys.argv[1:]
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
signal.alarm(int(os.environ.get("E2E_SECONDS", "60")))

context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
rng = random.Random(len(requests))

base = os.path.join(directory, name + "-0")
with (
    open(base + ".sent", "wb") as sent,
    open(base + ".received", "wb") as received,
    context.wrap_socket(socket.create_connection(("127.0.0.1", int(port)), timeout=30)) as tls,
):
    for number, request in enumerate(requests):
        method, path, *size = request.split()
        body = rng.randbytes(int(size[0])) if size else b""
        last = b"connection: close\r\n" if number == len(requests) - 1 else b""
        head = "%s %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n" % (method, path, len(body))
        message = head.encode() + last + b"\r\n" + body
        tls.sendall(message)
        sent.write(message)
        answer = b""
        length = None
        while length is None or len(answer) < length:
            data = tls.recv(65536)
            if not data:
                sys.exit("the server closed after %r" % answer[:200])
            received.write(data)
            answer += data
            if length is None and b"\r\n\r\n" in answer:
                head, _, _ = answer.partition(b"\r\n\r\n")
                status, *lines = head.decode("latin-1").split("\r\n")
                if status.split()[1][0] != "2":
                    sys.exit(status)
                fields = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
                length = len(head) + 4 + int(fields.get("content-length", "0"))
