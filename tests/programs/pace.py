"""One TLS connection that is served step by step, for `cargo xtask bench`.

usage: pace.py (frames|http) CERT KEY

Prints its port. A line N on stdin: N requests are answered; then the next one is waited for, and "done" is printed.
Until the next line that one has no answer, so the client does nothing. A request is a frame (how many bytes follow, how
many are wanted, each a big-endian word of eight bytes) or one of HTTP/1, whose path is the answer.
"""

import signal
import socket
import ssl
import sys

signal.alarm(900)
mode, cert, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
context.num_tickets = 0
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
connection = context.wrap_socket(connection, server_side=True)
buffered = b""


def more():
    global buffered
    got = connection.recv(65536)
    if not got:
        sys.exit(0)
    buffered += got


def take(size):
    global buffered
    while len(buffered) < size:
        more()
    taken, buffered = buffered[:size], buffered[size:]
    return taken


def frame():
    up, down = (int.from_bytes(take(8), "big") for _ in range(2))
    take(up)
    return bytes(down)


def exchange():
    while b"\r\n\r\n" not in buffered:
        more()
    head = take(buffered.index(b"\r\n\r\n") + 4)
    path = head.split(b" ")[1]
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(path), path)


request = {"frames": frame, "http": exchange}[mode]
answer = request()
for line in sys.stdin:
    for _ in range(int(line)):
        connection.sendall(answer)
        answer = request()
    print("done", flush=True)
