"""HTTP requests by several libraries; the server knows what went over the wire.

usage: http_client.py http.client|requests|asyncio|aiohttp|awscrt|curl_cffi|pyopenssl|pyopenssl-memory PORT [SEED]
"""

import ctypes
import os
import random
import signal
import ssl
import sys


def prepare():
    if os.environ.get("E2E_PDEATHSIG", "1") == "1":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    signal.alarm(int(os.environ.get("E2E_SECONDS", "60")))


def insecure():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def with_http_client(port, rng):
    import http.client

    conn = http.client.HTTPSConnection("127.0.0.1", port, context=insecure(), timeout=30)
    for size in (0, 1, 511, 16384, 16385, 233070):
        body = rng.randbytes(size)
        conn.request("POST", "/echo", body)
        assert conn.getresponse().read() == body
    for path, size in (("/bytes/150001", 150001), ("/chunked/200003", 200003), ("/text/70000", 70000)):
        conn.request("GET", path)
        assert len(conn.getresponse().read()) == size
    conn.close()


def with_requests(port, rng):
    import requests

    base = "https://127.0.0.1:%d" % port
    with requests.Session() as session:
        # Nothing from the environment: it may name proxies and other authorities.
        session.trust_env = False
        session.verify = os.environ["E2E_CERT"]
        body = rng.randbytes(300145)
        assert session.post(base + "/echo", data=body, timeout=30).content == body
        # An iterator is sent chunked.
        pieces = [rng.randbytes(rng.randint(1, 20000)) for _ in range(20)]
        assert session.post(base + "/echo", data=iter(pieces), timeout=30).content == b"".join(pieces)
        assert len(session.get(base + "/chunked/100001", timeout=30).content) == 100001


def with_asyncio(port, rng):
    """Memory BIOs, several connections on one thread."""
    import asyncio

    async def one(body):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=insecure())
        for _ in range(3):
            head = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
            writer.write(head + body)
            await writer.drain()
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(body)) == body
        writer.close()

    async def everything():
        await asyncio.wait_for(asyncio.gather(*(one(rng.randbytes(50000 + n)) for n in range(5))), 30)

    asyncio.run(everything())


def with_aiohttp(port, rng):
    import asyncio

    import aiohttp

    async def everything():
        base = "https://127.0.0.1:%d" % port
        connector = aiohttp.TCPConnector(ssl=insecure())
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def one(body):
                async with session.post(base + "/echo", data=body) as response:
                    assert await response.read() == body
                async with session.get(base + "/chunked/60001") as response:
                    assert len(await response.read()) == 60001

            await asyncio.gather(*(one(rng.randbytes(40000 + n)) for n in range(4)))

    asyncio.run(everything())


def with_awscrt(port, rng):
    """s2n-tls, on threads of its own and sockets that don't wait."""
    import io

    from awscrt.http import HttpClientConnection, HttpHeaders, HttpRequest
    from awscrt.io import ClientTlsContext, TlsContextOptions

    options = TlsContextOptions()
    options.verify_peer = False
    tls = ClientTlsContext(options).new_connection_options()
    tls.set_server_name("localhost")
    conn = HttpClientConnection.new("127.0.0.1", port, tls_connection_options=tls).result(30)
    for size in (1, 511, 16385, 400001):
        body, back = rng.randbytes(size), []
        headers = HttpHeaders([("host", "localhost"), ("content-length", str(size))])
        request = HttpRequest("POST", "/echo", headers, io.BytesIO(body))
        stream = conn.request(request, on_body=lambda chunk, **_: back.append(bytes(chunk)))
        stream.activate()
        assert stream.completion_future.result(30) == 200
        assert b"".join(back) == body
    conn.close().result(30)


def with_curl_cffi(port, rng):
    from curl_cffi import requests

    base = "https://127.0.0.1:%d" % port
    with requests.Session(verify=False, trust_env=False, timeout=30) as session:
        for size in (1, 511, 16385, 300145):
            body = rng.randbytes(size)
            assert session.post(base + "/echo", data=body).content == body
        assert len(session.get(base + "/chunked/150001").content) == 150001


def with_pyopenssl(port, rng, memory=False):
    """OpenSSL inside a Python module, on a socket or in memory; two connections, one after the other."""
    import socket

    from OpenSSL import SSL

    for size in (20011, 300145):
        sock = socket.create_connection(("127.0.0.1", port))
        conn = SSL.Connection(SSL.Context(SSL.SSLv23_METHOD), None if memory else sock)
        conn.set_connect_state()

        def flush():
            while memory:
                try:
                    sock.sendall(conn.bio_read(65536))
                except SSL.WantReadError:
                    break

        def finished(call, *args):
            while True:
                try:
                    return call(*args)
                except SSL.WantReadError:
                    flush()
                    conn.bio_write(sock.recv(65536))
                finally:
                    flush()

        def ask(head, body=b""):
            rest = head + body
            while rest:
                rest = rest[finished(conn.send, rest[:50021]) :]
            got = b""
            while b"\r\n\r\n" not in got:
                got += finished(conn.recv, 8192)
            return got.split(b"\r\n\r\n", 1)

        finished(conn.do_handshake)
        body = rng.randbytes(size)
        _, back = ask(b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % size, body)
        while len(back) < size:
            back += finished(conn.recv, 16384)
        assert back == body
        _, stream = ask(b"GET /chunked/150001 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        while not stream.endswith(b"\r\n0\r\n\r\n"):
            stream += finished(conn.recv, 4096)
        assert len(stream) > 150001
        conn.shutdown()
        flush()
        sock.close()


def with_pyopenssl_memory(port, rng):
    with_pyopenssl(port, rng, memory=True)


CLIENTS = {
    "http.client": with_http_client,
    "requests": with_requests,
    "asyncio": with_asyncio,
    "aiohttp": with_aiohttp,
    "awscrt": with_awscrt,
    "curl_cffi": with_curl_cffi,
    "pyopenssl": with_pyopenssl,
    "pyopenssl-memory": with_pyopenssl_memory,
}

prepare()
CLIENTS[sys.argv[1]](int(sys.argv[2]), random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 7))
