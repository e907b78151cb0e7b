"""A TLS server that writes down what it really sent and received. With --plain there is no TLS.

Every connection N leaves `server-N.sent` and `server-N.received` in --dir: the plaintext of its TLS
socket, raw. The port is in `server.port` once the server listens, one line per connection in
`server.accepted` and `server.closed`. It ends after --connections connections, after --seconds, or with its parent.

Modes:
  http    HTTP/1.1 with keep-alive: POST /echo gives the body back, GET /bytes/N and /chunked/N give
          N bytes, /text/N gives N bytes of text; the client closes.
  frames  a frame is two big-endian u64 (up, down), then `up` bytes from the client, then `down` bytes
          from the server; the client closes, or the server after --frames of them.
  proxy   CONNECT host:port, then bytes both ways; the client closes.
  http2   as much of HTTP/2 as a client needs that posts a body: it comes back; the client closes.
  models  HTTP/1.1 as above: what models.py streams, an event a write; all else is not found.
  relay   HTTP/2's bytes both ways to the TLS server whose port is in PROGRAM.port, for --to PROGRAM. What the
          recorded end sent is what the other one received, so the truth is that of two connections.
  buffers HTTP/1.1 as above: GET /writev/N, /sendmsg/N and /sendfile/N give N bytes by that system call, and
          /api/chat a model's answer in lines; the client closes.

With --alone it is in a network that has nothing but loopback, and so is who enters its namespace.
"""

import argparse
import ctypes
import fcntl
import json
import os
import random
import select
import signal
import socket
import ssl
import struct
import sys
import threading

CLOSED = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError, BrokenPipeError, TimeoutError)


class Recorded:
    """A TLS socket with a truth file for each direction."""

    def __init__(self, sock, base):
        self.sock = sock
        self.sent = open(base + ".sent", "wb", buffering=0)
        self.received = open(base + ".received", "wb", buffering=0)
        self.buffer = b""

    def read_some(self):
        """What is buffered or comes next, b"" at the end."""
        if self.buffer:
            data, self.buffer = self.buffer, b""
            return data
        try:
            data = self.sock.recv(65536)
        except CLOSED:
            return b""
        self.received.write(data)
        return data

    def read_exactly(self, count):
        parts = []
        while count:
            data = self.read_some()
            if not data:
                return None
            parts.append(data[:count])
            self.buffer = data[count:]
            count -= len(parts[-1])
        return b"".join(parts)

    def read_until(self, mark):
        data = b""
        while mark not in data:
            more = self.read_some()
            if not more:
                return None
            data += more
        end = data.index(mark) + len(mark)
        self.buffer = data[end:] + self.buffer
        return data[:end]

    def write(self, data, piece=1 << 20):
        """One SSL_write per piece."""
        for at in range(0, len(data), piece):
            self.sock.sendall(data[at : at + piece])
            self.sent.write(data[at : at + piece])

    def close(self):
        self.sock.close()
        self.sent.close()
        self.received.close()


def payload(size, rng, text):
    if not text:
        return rng.randbytes(size)
    # Characters of one, two and three bytes, so that pieces end inside of some.
    line = ("%016x zażółć ☃\n" % rng.getrandbits(64)).encode()
    return (line * (size // len(line) + 1))[:size]


def http(conn, rng, args, reply=None):
    while True:
        head = conn.read_until(b"\r\n\r\n")
        if head is None:
            return
        request, *lines = head.decode("latin-1").rstrip().split("\r\n")
        method, path, _ = request.split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if fields.get("expect") == "100-continue":
            conn.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = read_body(conn, fields)
        if body is None:
            return
        (reply or answer)(conn, path, body, rng)
        if fields.get("connection", "").lower() == "close":
            return drain(conn)


def read_body(conn, fields):
    if fields.get("transfer-encoding", "").lower() != "chunked":
        return conn.read_exactly(int(fields.get("content-length", "0")))
    body = b""
    while True:
        line = conn.read_until(b"\r\n")
        if line is None:
            return None
        size = int(line.split(b";")[0], 16)
        data = conn.read_exactly(size + 2)
        if data is None:
            return None
        body += data[:-2]
        if size == 0:
            return body


def answer(conn, path, body, rng):
    parts = path.strip("/").split("/")
    if parts[0] == "echo":
        content = body
    else:
        content = payload(int(parts[1]), rng, parts[0] == "text")
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n"
    if parts[0] != "chunked":
        conn.write(head + b"content-length: %d\r\n\r\n" % len(content) + content)
        return
    conn.write(head + b"transfer-encoding: chunked\r\n\r\n")
    at = 0
    while at < len(content):
        piece = content[at : at + rng.randint(1, 30000)]
        conn.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        at += len(piece)
    conn.write(b"0\r\n\r\n")


def models(conn, rng, args):
    from models import STREAMS

    def reply(conn, path, body, rng):
        stream = STREAMS.get(path.partition("?")[0])
        if stream is None or not body:
            return conn.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        conn.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in stream(json.loads(body), rng):
            conn.write(b"%x\r\n%s\r\n" % (len(event), event))
        conn.write(b"0\r\n\r\n")

    http(conn, rng, args, reply)


def buffers(conn, rng, args):
    conn.sock.setblocking(True)

    def reply(conn, path, body, rng):
        if path == "/api/chat":
            return chat(conn, json.loads(body))
        call, size = path.strip("/").split("/")
        content = rng.randbytes(int(size))
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content)
        if call == "sendfile":
            conn.write(head)
            return from_file(conn, content)
        # An empty one, small ones, and what is left.
        pieces = [b"", head, content[:1], content[1:100], b"", content[100:5000], content[5000:90000], content[90000:]]
        while any(pieces):
            count = os.writev(conn.sock.fileno(), pieces) if call == "writev" else conn.sock.sendmsg(pieces)
            conn.sent.write(b"".join(pieces)[:count])
            while pieces and count >= len(pieces[0]):
                count -= len(pieces.pop(0))
            if pieces:
                pieces[0] = pieces[0][count:]

    http(conn, rng, args, reply)


def from_file(conn, content):
    with open(os.path.join(conn.sent.name + ".file"), "w+b", buffering=0) as file:
        file.write(content)
        at = 0
        while at < len(content):
            at += os.sendfile(conn.sock.fileno(), file.fileno(), at, len(content) - at)
    conn.sent.write(content)


def chat(conn, asked):
    conn.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
    line = {"model": asked["model"], "created_at": "2026-01-01T00:00:00Z"}
    lines = [dict(line, message={"role": "assistant", "content": word}, done=False) for word in ("It ", "is ", "so.")]
    end = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    for line in lines + [dict(line, **end, prompt_eval_count=26, eval_count=3)]:
        text = json.dumps(line).encode() + b"\n"
        conn.write(b"%x\r\n%s\r\n" % (len(text), text))
    conn.write(b"0\r\n\r\n")


def drain(conn):
    """What the client still sends belongs to the truth."""
    while conn.read_some():
        pass


def frames(conn, rng, args):
    left = args.frames
    while left != 0:
        head = conn.read_exactly(16)
        if head is None:
            return
        up, down = struct.unpack(">QQ", head)
        if conn.read_exactly(up) is None:
            return
        conn.write(payload(down, rng, False))
        left -= 1
    try:
        conn.sock.settimeout(5)
        conn.sock.unwrap()
    except OSError:
        pass


def http2(conn, rng, args):
    data, headers, settings, window_update = 0, 1, 4, 8
    end_stream, end_headers, acknowledged = 1, 4, 1

    def frame(kind, flags, stream, content=b""):
        conn.write(struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content)

    if conn.read_exactly(24) != b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":
        return
    # INITIAL_WINDOW_SIZE, and as much for the connection: bodies come without more ado.
    window = 1 << 28
    frame(settings, 0, 0, struct.pack(">HI", 4, window))
    frame(window_update, 0, 0, struct.pack(">I", window))
    bodies = {}
    while True:
        head = conn.read_exactly(9)
        if head is None:
            return
        length, kind, flags, stream = int.from_bytes(head[:3], "big"), head[3], head[4], int.from_bytes(head[5:], "big")
        content = conn.read_exactly(length)
        if content is None:
            return
        if kind == settings and not flags & acknowledged:
            frame(settings, acknowledged, 0)
        if kind == data:
            bodies[stream] = bodies.get(stream, b"") + content
        if kind in (data, headers) and flags & end_stream:
            body = bodies.pop(stream, b"")
            # The first of the static table's ":status: 200".
            frame(headers, end_headers, stream, b"\x88")
            for at in range(0, len(body), 16384):
                frame(data, 0, stream, body[at : at + 16384])
            frame(data, end_stream, stream)


def proxy(conn, rng, args):
    head = conn.read_until(b"\r\n\r\n")
    if head is None:
        return
    host, _, port = head.split(b" ")[1].decode().rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=args.seconds) as upstream:
        conn.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        forward(conn, upstream, lambda: False, args)


def relay(conn, rng, args):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with open(os.path.join(args.dir, args.to + ".port")) as file:
        port = int(file.read())
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=args.seconds)) as upstream:
        forward(conn, upstream, upstream.pending, args)


def forward(conn, upstream, pending, args):
    """Until one of them ends. In one thread for both ways: an SSL object is not for two."""
    while True:
        ready = [conn.sock] if conn.buffer or conn.sock.pending() else []
        ready += [upstream] if pending() else []
        if not ready:
            ready, _, _ = select.select([conn.sock, upstream], [], [], args.seconds)
        if upstream in ready:
            data = upstream.recv(65536)
            if not data:
                return
            conn.write(data)
        if conn.sock in ready:
            data = conn.read_some()
            if not data:
                return
            upstream.sendall(data)


def serve(number, sock, context, closed, args):
    base = os.path.join(args.dir, "%s-%d" % (args.name, number))
    try:
        sock.settimeout(args.seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock if args.plain else context.wrap_socket(sock, server_side=True) as tls:
            conn = Recorded(tls, base)
            try:
                MODES[args.mode](conn, random.Random(args.seed + number), args)
            finally:
                conn.close()
    except CLOSED as error:
        print("connection %d: %r" % (number, error), file=sys.stderr)
    finally:
        sock.close()
        closed.write("%d\n" % number)


MODES = {"http": http, "frames": frames, "proxy": proxy, "http2": http2, "models": models, "relay": relay, "buffers": buffers}


def leave_network():
    """A network namespace of our own, with loopback up and nothing else."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket() as sock:
        # SIOCSIFFLAGS: struct ifreq with IFF_UP | IFF_RUNNING.
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x41))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", required=True)
    parser.add_argument("--name", default="server")
    parser.add_argument("--cert", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--mode", choices=MODES, default="http")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--connections", type=int, default=0)
    parser.add_argument("--frames", type=int, default=-1)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--to")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--alone", action="store_true")
    args = parser.parse_args()

    if os.environ.get("E2E_PDEATHSIG", "1") == "1":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    signal.alarm(args.seconds)
    if args.alone:
        leave_network()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.cert, args.key)
    context.set_alpn_protocols(["h2" if args.mode in ("http2", "relay") else "http/1.1"])
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    with socket.create_server((args.host, args.port), family=family, backlog=512) as listener:
        port = os.path.join(args.dir, args.name + ".port")
        with open(port + ".new", "w") as file:
            file.write("%d\n" % listener.getsockname()[1])
        os.rename(port + ".new", port)
        accepted = open(os.path.join(args.dir, args.name + ".accepted"), "w", buffering=1)
        closed = open(os.path.join(args.dir, args.name + ".closed"), "w", buffering=1)
        threads = []
        while args.connections == 0 or len(threads) < args.connections:
            sock, peer = listener.accept()
            accepted.write("%d %s %s\n" % (len(threads), peer[0], peer[1]))
            thread = threading.Thread(target=serve, args=(len(threads), sock, context, closed, args), daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()


main()
