"""Many TLS connections of one process at the same time, and what they ask for names them.

usage: connections.py KIND CONNECTIONS REQUESTS URL...

Connection C asks the server at URL[C % len] for /nonce-C-R, for R in 0..REQUESTS, padded to random sizes.

KIND  sync, threads             a socket for each connection
      asyncio, uvloop, aiohttp, httpx
      lockstep, reverse, prefetch, shuffle
                                memory BIOs driven by hand, all connections at once: what a thread does next
                                says nothing about whose bytes those are
      handoff                   one thread for each socket's reads, one for all sends, one for the TLS
      tunnel                    TLS in TLS: the first URL is the relay's

usage: connections.py serve|relay DIR NAME CERT KEY

An asyncio server or relay on 127.0.0.1 whose port is in DIR/NAME.port, and which writes down between which
two ends each request came: lines as those of nonce_server.py in DIR/NAME.accepted.
"""

import asyncio
import ctypes
import os
import queue
import random
import signal
import socket
import ssl
import sys
import threading
from urllib.parse import urlsplit

# Pauses between requests, in seconds at most.
PAUSE = float(os.environ.get("E2E_PAUSE", "0.002"))
rng = random.Random(11)


def insecure():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


CONTEXT = insecure()


def address(url):
    parts = urlsplit(url)
    return parts.hostname, parts.port


def request(connection, number, equal=False):
    pad = "p" * (100 if equal else rng.randint(1, 1500))
    return ("GET /nonce-%04d-%04d HTTP/1.1\r\nhost: x\r\npad: %s\r\n\r\n" % (connection, number, pad)).encode()


async def ask(reader, writer, connection, requests):
    for number in range(requests):
        writer.write(request(connection, number))
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        assert b"nonce-%04d-%04d" % (connection, number) in await reader.readexactly(length)
        await asyncio.sleep(rng.random() * PAUSE)


async def on_streams(connections, requests, urls):
    async def one(connection):
        host, port = address(urls[connection % len(urls)])
        reader, writer = await asyncio.open_connection(host, port, ssl=CONTEXT, server_hostname="")
        await ask(reader, writer, connection, requests)
        writer.close()

    await asyncio.gather(*(one(c) for c in range(connections)))


async def on_aiohttp(connections, requests, urls):
    import aiohttp

    async def one(connection):
        # A session is a pool: one for each connection, so that the names are those of connections.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=CONTEXT, limit=1)) as session:
            for number in range(requests):
                url = "%s/nonce-%04d-%04d" % (urls[connection % len(urls)], connection, number)
                async with session.get(url, headers={"pad": "p" * rng.randint(1, 1500)}) as response:
                    await response.read()
                await asyncio.sleep(rng.random() * PAUSE)

    await asyncio.gather(*(one(c) for c in range(connections)))


async def on_httpx(connections, requests, urls):
    import httpx

    async def one(client, connection):
        # Tasks that begin in the same instant go in step at first, and who goes in step can't be told apart.
        await asyncio.sleep(rng.random() * 20 * PAUSE)
        for number in range(requests):
            url = "%s/nonce-%04d-%04d" % (urls[connection % len(urls)], connection, number)
            await client.get(url, headers={"pad": "p" * rng.randint(1, 1500)})
            await asyncio.sleep(rng.random() * PAUSE)

    async with httpx.AsyncClient(verify=False, timeout=60, trust_env=False) as client:
        await asyncio.gather(*(one(client, c) for c in range(connections)))


async def through_tunnels(connections, requests, urls):
    relay, *urls = urls

    async def one(connection):
        reader, writer = await asyncio.open_connection(*address(relay), ssl=CONTEXT, server_hostname="")
        host, port = address(urls[connection % len(urls)])
        writer.write(b"CONNECT %s %d nonce-%04d-9999\n" % (host.encode(), port, connection))
        assert await reader.readline() == b"ok nonce-%04d-9999\n" % connection
        outer = writer.transport
        protocol = outer.get_protocol()
        inner = await asyncio.get_running_loop().start_tls(outer, protocol, CONTEXT)
        protocol._transport = writer._transport = reader._transport = inner
        await ask(reader, writer, connection, requests)
        writer.close()

    await asyncio.gather(*(one(c) for c in range(connections)))


def on_a_socket(connection, requests, urls):
    sock = CONTEXT.wrap_socket(socket.create_connection(address(urls[connection % len(urls)])))
    for number in range(requests):
        sock.sendall(request(connection, number))
        answer = b""
        while not answer.endswith(b"nonce-%04d-%04d\n" % (connection, number)):
            answer += sock.recv(65536)
    sock.close()


def on_threads(connections, requests, urls):
    threads = [threading.Thread(target=on_a_socket, args=(c, requests, urls)) for c in range(connections)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]


class ByHand:
    """A connection on memory BIOs."""

    def __init__(self, connection, urls):
        self.number = connection
        self.sock = socket.create_connection(address(urls[connection % len(urls)]))
        self.inside, self.outside = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = CONTEXT.wrap_bio(self.inside, self.outside)
        self.answer = b""

    def shake(self):
        """One step. True when it is over."""
        try:
            self.tls.do_handshake()
            return True
        except ssl.SSLWantReadError:
            return False

    def send(self):
        data = self.outside.read()
        if data:
            self.sock.sendall(data)

    def receive(self):
        self.inside.write(self.sock.recv(65536))

    def read(self):
        """True when the answer is there."""
        try:
            while True:
                self.answer += self.tls.read(65536)
        except ssl.SSLWantReadError:
            pass
        if not self.answer.endswith(b"\n"):
            return False
        self.answer = b""
        return True


def by_hand(kind, connections, requests, urls):
    everybody = [ByHand(c, urls) for c in range(connections)]
    # In step from the handshake on: whose turn it is in one thing is nobody's in the next.
    waiting = everybody[:]
    while waiting:
        waiting = [one for one in waiting if not one.shake()]
        order(kind, everybody, lambda one: one.send())
        for one in waiting:
            one.receive()
    for number in range(requests):
        for one in everybody:
            one.tls.write(request(one.number, number, equal=kind in ("lockstep", "reverse")))
        order(kind, everybody, lambda one: one.send())
        order(kind, everybody, lambda one: one.receive())
        left = everybody[:]
        while left:
            left = [one for one in left if not one.read()]
            order(kind, left, lambda one: one.receive())


def order(kind, everybody, act):
    everybody = everybody[:]
    if kind == "reverse":
        everybody.reverse()
    if kind == "prefetch":
        everybody = everybody[1:] + everybody[:1]
    if kind == "shuffle":
        rng.shuffle(everybody)
    for one in everybody:
        act(one)


def handoff(connections, requests, urls):
    everybody = [ByHand(c, urls) for c in range(connections)]
    to_send, received = queue.Queue(), queue.Queue()

    def reader(one):
        while data := one.sock.recv(65536):
            received.put((one, data))

    def sender():
        while True:
            one, data = to_send.get()
            one.sock.sendall(data)

    for one in everybody:
        threading.Thread(target=reader, args=(one,), daemon=True).start()
    threading.Thread(target=sender, daemon=True).start()
    left = {one: requests for one in everybody}
    shaken = set()

    def step(one):
        if one not in shaken:
            if one.shake():
                shaken.add(one)
                one.tls.write(request(one.number, 0))
        elif one.read():
            left[one] -= 1
            if left[one] > 0:
                one.tls.write(request(one.number, requests - left[one]))
        data = one.outside.read()
        if data:
            to_send.put((one, data))

    for one in everybody:
        step(one)
    while any(left.values()):
        one, data = received.get(timeout=20)
        one.inside.write(data)
        step(one)


def serve(kind, directory, name, cert, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    base = os.path.join(directory, name)
    accepted = open(base + ".accepted", "w", buffering=1)

    def note(path, writer):
        local, peer = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
        accepted.write("%s %s %d %s %d\n" % (path, local[0], local[1], peer[0], peer[1]))

    async def answer(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split(b" ")[1].decode()
            note(path, writer)
            body = path.encode() + b"\n"
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()

    async def relay(reader, writer):
        _, host, port, nonce = (await reader.readline()).split()
        note(nonce.decode(), writer)
        far_reader, far_writer = await asyncio.open_connection(host.decode(), int(port))
        writer.write(b"ok %s\n" % nonce)

        async def pump(reader, writer):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async def quietly(reader, writer):
        try:
            await (answer if kind == "serve" else relay)(reader, writer)
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def everything():
        server = await asyncio.start_server(quietly, "127.0.0.1", 0, ssl=context)
        with open(base + ".port.new", "w") as file:
            file.write("%d\n" % server.sockets[0].getsockname()[1])
        os.rename(base + ".port.new", base + ".port")
        await server.serve_forever()

    asyncio.run(everything())


def main():
    if os.environ.get("E2E_PDEATHSIG", "1") == "1":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    signal.alarm(2 * int(os.environ.get("E2E_SECONDS", "60")))
    kind = sys.argv[1]
    if kind in ("serve", "relay"):
        return serve(*sys.argv[1:])
    connections, requests, urls = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    loops = {
        "asyncio": on_streams,
        "uvloop": on_streams,
        "aiohttp": on_aiohttp,
        "httpx": on_httpx,
        "tunnel": through_tunnels,
    }
    if kind in loops:
        if kind == "uvloop":
            import uvloop

            uvloop.install()
        asyncio.run(loops[kind](connections, requests, urls))
    elif kind == "sync":
        for connection in range(connections):
            on_a_socket(connection, requests, urls)
    elif kind == "threads":
        on_threads(connections, requests, urls)
    elif kind == "handoff":
        handoff(connections, requests, urls)
    else:
        by_hand(kind, connections, requests, urls)


main()
