"""Server-sent events over TLS, each flushed by itself: both ends write down what passed, and when.

usage: events.py serve DIR CERT KEY           the port is in DIR/events.port
       events.py ask DIR PORT STREAMS EVENTS  STREAMS answers of EVENTS events each, three on a connection

A line of DIR/events.sent is one event as JSON: path, number, name, id, data, and the wall clock in nanoseconds before it
was sent. One of DIR/events.got: path, number, the client's data, and when all of it was there.
"""

import asyncio
import concurrent.futures
import ctypes
import http.client
import json
import os
import random
import re
import signal
import ssl
import sys
import time
import zlib


def event_of(path, number):
    """Name, id, data: anything may be missing but the data."""
    rng = random.Random("%s %d" % (path, number))
    name = rng.choice(["", "tick", "content_block_delta"])
    ident = rng.choice(["", str(number), "id-%d" % number])
    text = rng.choice(['{"n":%d,"text":"\u00e4\u20ac"}', "line of %d\nand another one\n\nthe end", " %d, a space first", "%d"])
    data = text % number
    if number % 10 == 7:
        data += "x" * int(50_000 ** rng.random())
    return name, ident, data


def written(name, ident, data, end, rng):
    lines = []
    if rng.random() < 0.2:
        lines.append(": a comment")
    if name:
        lines.append("event: " + name)
    for line in data.split("\n"):
        lines.append("data: " + line if line.startswith(" ") or rng.random() < 0.5 else "data:" + line)
    if ident:
        lines.append("id: " + ident)
    if rng.random() < 0.1:
        lines.append("retry: 3000")
    return (end.join(lines) + end + end).encode()


async def serve(directory, cert, key):
    log = open(os.path.join(directory, "events.sent"), "w", buffering=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    async def one(reader, writer):
        while line := await reader.readline():
            path = line.split()[1].decode()
            while (await reader.readline()) != b"\r\n":
                pass
            stream, events = map(int, path.split("/")[2:])
            rng = random.Random(stream)
            is_coded, end = stream % 3 != 2, ["\n", "\r\n", "\r"][stream % 5 % 3]
            coder = zlib.compressobj(wbits=31)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
            writer.write(head + (b"content-encoding: gzip\r\n\r\n" if is_coded else b"\r\n"))

            def chunk(piece):
                if piece:
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))

            for number in range(events):
                name, ident, data = event_of(path, number)
                piece = written(name, ident, data, end, rng)
                said = {"path": path, "number": number, "event": name, "id": ident, "data": data, "time": time.time_ns()}
                log.write(json.dumps(said) + "\n")
                if is_coded:
                    piece = coder.compress(piece) + coder.flush(zlib.Z_SYNC_FLUSH)
                if number % 4 == 1:
                    # One event in two calls.
                    middle = len(piece) // 2
                    chunk(piece[:middle])
                    await writer.drain()
                    await asyncio.sleep(0.001)
                    piece = piece[middle:]
                chunk(piece)
                await writer.drain()
                await asyncio.sleep(0.002 * rng.random())
            if is_coded:
                chunk(coder.flush())
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)
    path = os.path.join(directory, "events.port")
    with open(path + ".new", "w") as file:
        file.write("%d\n" % server.sockets[0].getsockname()[1])
    os.rename(path + ".new", path)
    await server.serve_forever()


def read(response, path, log):
    """Splits events as a client does, as far as it takes to tell when each was there."""
    decoder = zlib.decompressobj(wbits=31) if response.getheader("content-encoding") else None
    number, line, data, was_return = 0, b"", [], False
    while piece := response.read1():
        for part in re.split(rb"([\r\n])", decoder.decompress(piece) if decoder else piece):
            if part == b"\n" and was_return:
                # The second half of a line's end.
                was_return = False
            elif part in (b"\r", b"\n"):
                was_return = part == b"\r"
                if line.startswith(b"data:"):
                    data.append(line[5:].removeprefix(b" "))
                elif not line and data:
                    said = {"path": path, "number": number, "data": b"\n".join(data).decode(), "time": time.time_ns()}
                    log.write(json.dumps(said) + "\n")
                    number, data = number + 1, []
                line = b""
            elif part:
                line, was_return = line + part, False
    return number


def ask(directory, port, streams, events):
    log = open(os.path.join(directory, "events.got"), "w", buffering=1)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def three(first):
        connection = http.client.HTTPSConnection("127.0.0.1", int(port), context=context, timeout=60)
        for stream in range(first, min(first + 3, int(streams))):
            path = "/events/%d/%d" % (stream, int(events))
            connection.request("GET", path)
            assert read(connection.getresponse(), path, log) == int(events)
        connection.close()

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(three, range(0, int(streams), 3)))


ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.alarm(int(os.environ.get("E2E_SECONDS", "60")) * 2)
if sys.argv[1] == "serve":
    asyncio.run(serve(*sys.argv[2:]))
else:
    ask(*sys.argv[2:])
