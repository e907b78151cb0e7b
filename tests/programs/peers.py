"""Exchanges by HTTP/2 and HTTP/1.1 between peers of all kinds, each written down by both ends as it was.

usage: peers.py serve DIR NAME CERT KEY          HTTP/2 by the wheel `h2`; the port is in DIR/NAME.port
       peers.py behind DIR NAME CERT KEY         HTTP/1.1 over TLS, for a proxy before it
       peers.py ask DIR NAME PORT FROM COUNT AT_ONCE KIND...
                                                 COUNT exchanges from number FROM on by the wheel `httpx`, all on one
                                                 connection of HTTP/2, AT_ONCE at once; KIND is what paths begin with
       peers.py ask-1 DIR NAME PORT FROM COUNT   the same by `http.client`, one after the other
       peers.py files DIR COUNT                  the bodies 0 to COUNT as files DIR/NUMBER

A line of DIR/NAME.exchanges is one exchange as JSON: path, method, status; of both sides the header fields in their
order, the trailers, and of the body, before it was coded, its length and CRC-32. The path says all of it:
/KIND/NUMBER?coding=CODING, and NUMBER seeds the rest. The body of /long/0 goes on until there is a file DIR/go; there
is DIR/long when it has begun. Of that kind `ask` asks for the first 60 before, and for the rest behind it.
"""

import asyncio
import ctypes
import json
import os
import random
import signal
import ssl
import sys
import zlib

METHODS = ["GET", "POST", "GET", "PUT", "GET", "HEAD", "DELETE", "PATCH"]
CODINGS = ["gzip", "br", "zstd", "deflate", "identity"]
LARGE = 2 << 20


def body_of(number, least=1):
    """Text, runs or noise of any length up to 2 MiB; most are small."""
    rng = random.Random(number)
    limit = LARGE if number % 37 == 5 else 64 << 10
    size = max(least, int(limit ** rng.random()))
    if number % 37 == 5 and number % 2:
        size = LARGE
    kind = number % 3
    if kind == 0:
        line = "line of %d, which is text: \u00e4\u20ac\U0001f600\n" % number
        return (line * (size // 20 + 1)).encode()[:size]
    if kind == 1:
        parts = []
        while size > 0:
            length = min(size, int(30_000 ** rng.random()))
            parts.append(rng.randbytes(1) * length)
            size -= length
        return b"".join(parts)
    return rng.randbytes(size)


class Whole:
    """No coding."""

    def compress(self, data):
        return data

    def flush(self, _mode=None):
        return b""


def coded(coding, body, rng):
    """The pieces of a body in that coding, some of them flushed."""
    if coding == "gzip":
        coder, mode = zlib.compressobj(rng.choice([1, 6, 9]), wbits=31), zlib.Z_SYNC_FLUSH
    elif coding == "deflate":
        coder, mode = zlib.compressobj(6, wbits=15), zlib.Z_FULL_FLUSH
    elif coding == "br":
        import brotli

        inner = brotli.Compressor(quality=rng.choice([1, 4, 5]), lgwin=rng.choice([16, 19, 22]))
        pieces = []
        for piece in cut(body, rng):
            pieces.append(inner.process(piece) + (inner.flush() if rng.random() < 0.5 else b""))
        return pieces + [inner.finish()]
    elif coding == "zstd":
        import zstandard

        coder = zstandard.ZstdCompressor(level=rng.choice([1, 3, 9])).compressobj()
        mode = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    else:
        coder, mode = Whole(), None
    pieces = []
    for piece in cut(body, rng):
        pieces.append(coder.compress(piece) + (coder.flush(mode) if rng.random() < 0.5 else b""))
    return pieces + [coder.flush()]


def cut(body, rng):
    rest = memoryview(body)
    while rest:
        size = int(300_000 ** rng.random())
        yield bytes(rest[:size])
        rest = rest[size:]


def check(body):
    return {"length": len(body), "crc": zlib.crc32(body)}


def texts(fields):
    return [[bytes(name).decode(), bytes(value).decode()] for name, value in fields]


def log_of(directory, name):
    return open(os.path.join(directory, name + ".exchanges"), "a", buffering=1)


def publish(directory, name, port):
    path = os.path.join(directory, name + ".port")
    with open(path + ".new", "w") as file:
        file.write("%d\n" % port)
    os.rename(path + ".new", path)


async def go_on(directory, path):
    """More of a body for as long as it is wanted."""
    for at in range(3000 if path.startswith("/long/0?") else 0):
        if at == 10:
            open(os.path.join(directory, "long"), "w").close()
        if os.path.exists(os.path.join(directory, "go")):
            return
        await asyncio.sleep(0.01)
        yield random.Random(9).randbytes(20_000)


def answer(method, path, asked):
    """Status, header fields, pieces as they are sent, the body before it was coded, and trailers."""
    head, _, query = path.partition("?")
    number = int(head.rsplit("/", 1)[1])
    coding = "identity" if head == "/long/0" else query.partition("coding=")[2]
    rng = random.Random(number + 1)
    fields = [
        ("server", "peers"),
        ("x-number", str(number)),
        ("set-cookie", "a=%d; Path=/" % number),
        ("x-empty", ""),
        ("x-long", "%d." % number * rng.choice([1, 1, 1, 900])),
        ("set-cookie", "b=2; Path=/"),
        ("x-name", "Gr\u00fc\u00dfe %d" % (number % 7)),
    ]
    status = rng.choice([200, 200, 200, 201, 404, 500])
    if method == "DELETE":
        return 204, fields, [], b"", []
    body = asked if method in ("PUT", "PATCH") and asked else body_of(number)
    if number % 7 == 3:
        fields.append(("content-type", "text/plain; charset=utf-8"))
    if coding != "identity":
        fields.append(("content-encoding", coding))
    if method == "HEAD":
        return status, fields, [], b"", []
    trailers = [("x-crc", str(zlib.crc32(body))), ("x-end", "yes")] if number % 5 == 2 else []
    return status, fields, coded(coding, body, rng), body, trailers


def entry(method, path, asked, asked_fields, status, fields, body, trailers):
    return json.dumps(
        {
            "path": path.partition("?")[0],
            "method": method,
            "status": status,
            "request": {"fields": asked_fields, "trailers": [], **check(asked)},
            "response": {"fields": fields, "trailers": trailers, **check(body)},
        }
    )


def context_of(cert, key, protocol):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols([protocol])
    return context


async def listen(directory, name, context, serve_one):
    server = await asyncio.start_server(serve_one, "127.0.0.1", 0, ssl=context, backlog=256)
    publish(directory, name, server.sockets[0].getsockname()[1])
    await server.serve_forever()


class Http2:
    """A connection of a server."""

    def __init__(self, reader, writer, log, directory):
        import h2.config
        import h2.connection

        self.reader, self.writer, self.log, self.directory = reader, writer, log, directory
        # As they come: the library would put cookies elsewhere.
        config = h2.config.H2Configuration(client_side=False, header_encoding=None, normalize_inbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.asked = {}
        self.has_room = asyncio.Event()
        self.tasks = set()

    async def run(self):
        import h2.events as events
        import h2.settings

        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 200})
        self.send()
        while data := await self.reader.read(65536):
            for event in self.h2.receive_data(data):
                if isinstance(event, events.RequestReceived):
                    self.asked[event.stream_id] = (event.headers, [])
                elif isinstance(event, events.DataReceived):
                    self.asked[event.stream_id][1].append(event.data)
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, events.StreamEnded):
                    task = asyncio.ensure_future(self.answer(event.stream_id))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
                elif isinstance(event, (events.WindowUpdated, events.RemoteSettingsChanged)):
                    self.has_room.set()
            self.send()
        self.writer.close()

    def send(self):
        self.writer.write(self.h2.data_to_send())

    async def answer(self, stream):
        headers, pieces = self.asked.pop(stream)
        pseudo = {name: value.decode() for name, value in headers if name.startswith(b":")}
        fields = texts((name, value) for name, value in headers if not name.startswith(b":"))
        method, path = pseudo[b":method"], pseudo[b":path"]
        asked = b"".join(pieces)
        if ["content-encoding", "gzip"] in fields:
            asked = zlib.decompress(asked, wbits=31)
        status, answered, pieces, body, trailers = answer(method, path, asked)
        self.h2.send_headers(stream, [(":status", str(status)), *answered], end_stream=not pieces)
        before = b""
        async for piece in go_on(self.directory, path):
            await self.data(stream, piece, False)
            before += piece
        body = before + body
        self.log.write(entry(method, path, asked, fields, status, answered, body, trailers) + "\n")
        for at, piece in enumerate(pieces):
            await self.data(stream, piece, at == len(pieces) - 1 and not trailers)
        if pieces and trailers:
            self.h2.send_headers(stream, trailers, end_stream=True)
        self.send()
        await self.writer.drain()

    async def data(self, stream, data, is_last):
        rest = memoryview(data)
        while rest or is_last:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if rest and room <= 0:
                self.has_room.clear()
                await self.has_room.wait()
                continue
            frame, rest = bytes(rest[:room]), rest[room:]
            ends = is_last and not rest
            padding = 7 if len(frame) % 5 == 1 and len(frame) + 8 <= room else None
            self.h2.send_data(stream, frame, end_stream=ends, pad_length=padding)
            self.send()
            await self.writer.drain()
            if ends:
                return


async def serve(directory, name, cert, key):
    log = log_of(directory, name)

    async def one(reader, writer):
        await Http2(reader, writer, log, directory).run()

    await listen(directory, name, context_of(cert, key, "h2"), one)


async def behind(directory, name, cert, key):
    """One request after the other on each connection; bodies in chunks, or by their length."""
    log = log_of(directory, name)

    async def body_behind(fields, reader):
        known = {field.lower(): value for field, value in fields}
        if known.get("transfer-encoding") != "chunked":
            return await reader.readexactly(int(known.get("content-length", "0")))
        parts = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        return b"".join(parts)

    async def one(reader, writer):
        try:
            while line := (await reader.readline()).decode():
                method, path, _ = line.split()
                fields = []
                while (line := (await reader.readline()).decode().rstrip("\r\n")) != "":
                    field, _, value = line.partition(":")
                    fields.append([field, value.strip()])
                asked = await body_behind(fields, reader)
                if ["content-encoding", "gzip"] in fields:
                    asked = zlib.decompress(asked, wbits=31)
                status, answered, pieces, body, trailers = answer(method, path, asked)
                is_long = path.startswith("/long/0?")
                has_length = not is_long and len(body) % 2 == 0 or method == "HEAD" or status == 204
                if has_length:
                    trailers = []
                    if status != 204 and method != "HEAD":
                        answered.append(("content-length", str(sum(map(len, pieces)))))
                else:
                    answered.append(("transfer-encoding", "chunked"))
                head = "".join("%s: %s\r\n" % field for field in answered)
                writer.write(("HTTP/1.1 %d Said\r\n%s\r\n" % (status, head)).encode())
                before = b""
                async for piece in go_on(directory, path):
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
                    before += piece
                body = before + body
                log.write(entry(method, path, asked, fields, status, answered, body, trailers) + "\n")
                for piece in pieces:
                    if has_length:
                        writer.write(piece)
                    elif piece:
                        writer.write(b"%x;as=chunk\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
                if not has_length:
                    tail = "".join("%s: %s\r\n" % field for field in trailers)
                    writer.write(("0\r\n%s\r\n" % tail).encode())
                await writer.drain()
        finally:
            writer.close()

    await listen(directory, name, context_of(cert, key, "http/1.1"), one)


def plan(number, kinds):
    """Method, path, fields and body of a request, before it was coded and as it is sent."""
    kind = kinds[number % len(kinds)]
    method = "GET" if kind.startswith("file") else METHODS[number % len(METHODS)]
    rng = random.Random(number + 2)
    path = "/%s/%d?coding=%s" % (kind, number, CODINGS[rng.randrange(len(CODINGS))])
    fields = {"x-nonce": "nonce-%d" % number, "x-turn": str(number % 9), "x-empty": ""}
    if number % 11 == 4:
        fields["x-long"] = "%d," % number * 800
    body = body_of(number + 100_000) if method in ("POST", "PUT", "PATCH") else b""
    sent = body
    if body and number % 3 == 0:
        fields["content-encoding"] = "gzip"
        sent = zlib.compress(body, wbits=31)
    return method, path, fields, body, sent


async def ask(directory, name, port, start, count, at_once, *kinds):
    import httpx

    log = log_of(directory, name)
    numbers = iter(range(int(start), int(start) + int(count)))
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    # Whatever order they end in, their number says which they are.
    async with httpx.AsyncClient(http1=False, http2=True, verify=False, limits=limits, timeout=90, trust_env=False) as client:

        async def worker():
            for number in numbers:
                while "long" in kinds and number >= 60 and not os.path.exists(os.path.join(directory, "go")):
                    await asyncio.sleep(0.01)
                method, path, fields, body, sent = plan(number, kinds)
                content = {"content": sent} if sent else {}
                response = await client.request(method, "https://127.0.0.1:%s%s" % (port, path), headers=fields, **content)
                assert response.http_version == "HTTP/2", response.http_version
                asked = [
                    [field.decode().lower(), value.decode()]
                    for field, value in response.request.headers.raw
                    if field.lower() not in (b"connection", b"host", b"transfer-encoding")
                ]
                answered = texts(response.headers.raw)
                log.write(entry(method, path, body, asked, response.status_code, answered, response.content, []) + "\n")

        await asyncio.gather(*(worker() for _ in range(int(at_once))))


def ask_1(directory, name, port, start, count, kind):
    import http.client

    log = log_of(directory, name)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", int(port), context=context, timeout=90)
    for number in range(int(start), int(start) + int(count)):
        method, path, fields, body, sent = plan(number, [kind])
        connection.request(method, path, body=sent or None, headers=fields)
        response = connection.getresponse()
        response.read()
        log.write("%d\n" % number)


def files(directory, count):
    os.makedirs(directory, exist_ok=True)
    for number in range(int(count)):
        with open(os.path.join(directory, str(number)), "wb") as file:
            file.write(body_of(number))


ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.alarm(int(os.environ.get("E2E_SECONDS", "60")) * 3)
what, *words = sys.argv[1:]
if what in ("files", "ask-1"):
    {"files": files, "ask-1": ask_1}[what](*words)
else:
    asyncio.run({"serve": serve, "behind": behind, "ask": ask}[what](*words))
