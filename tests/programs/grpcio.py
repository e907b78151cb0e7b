"""gRPC by the wheel of that name: a TLS client, a TLS server, or both.

usage: grpcio.py both DIR CERT KEY URL           the server's port is in DIR/grpcio.port; URL leads to a relay to it
       grpcio.py serve DIR CERT KEY HOST...      the same port at each host
       grpcio.py ask CERT CHANNELS REQUESTS URL...

One call of each kind: unary, a stream from the server, a stream to it, one both ways. `ask` has a thread and a
connection for each channel; channel C calls URL[C % len] with nonce-C-R in each message, for R in 0..REQUESTS, and
`serve` writes down between which two ends it came, a line as those of nonce_server.py in DIR/grpcio.accepted.
"""

import concurrent.futures
import ctypes
import os
import random
import re
import signal
import socket
import sys
import time
import urllib.parse

import grpc

PIECES = 4


def read(path):
    with open(path, "rb") as file:
        return file.read()


def server(see):
    """All calls give back what they got; `see` is told of each message and its caller."""

    def one(message, context):
        see(message, context.peer())
        return message

    def stream(message, context):
        for _ in range(PIECES):
            yield one(message, context)

    def gather(messages, context):
        return b"".join(one(message, context) for message in messages)

    def chat(messages, context):
        for message in messages:
            yield one(message, context)

    handlers = {
        "One": grpc.unary_unary_rpc_method_handler(one),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Gather": grpc.stream_unary_rpc_method_handler(gather),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    workers = concurrent.futures.ThreadPoolExecutor(16)
    # The port was chosen before, and nobody else may have it, too.
    made = grpc.server(workers, options=[("grpc.so_reuseport", 0)])
    made.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("e2e.Echo", handlers)])
    return made


def free_port(hosts):
    """One that is free at each of them."""
    while True:
        sockets = []
        try:
            port = 0
            for host in hosts:
                sockets.append(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
                sockets[-1].bind((host, port))
                port = sockets[-1].getsockname()[1]
            return port
        except OSError:
            pass
        finally:
            for each in sockets:
                each.close()


def listen(directory, cert, key, hosts, see):
    credentials = grpc.ssl_server_credentials([(read(key), read(cert))])
    port = free_port(hosts)
    servers = []
    for host in hosts:
        made = server(lambda message, peer, host=host: see(message, host, port, peer))
        made.add_secure_port("[%s]:%d" % (host, port) if ":" in host else "%s:%d" % (host, port), credentials)
        made.start()
        servers.append(made)
    path = os.path.join(directory, "grpcio.port")
    with open(path + ".new", "w") as file:
        file.write("%d\n" % port)
    os.rename(path + ".new", path)
    return servers


def serve(directory, cert, key, *hosts):
    accepted = open(os.path.join(directory, "grpcio.accepted"), "w", buffering=1)
    known = set()

    def see(message, host, port, peer):
        nonce = re.search(rb"nonce-\d{4}-\d{4}", message).group().decode()
        if nonce in known:
            return
        known.add(nonce)
        # ipv4:127.0.0.1:5, or ipv6:%5B::1%5D:5.
        address, _, peer_port = urllib.parse.unquote(peer).partition(":")[2].rpartition(":")
        accepted.write("%s %s %d %s %s\n" % (nonce, host, port, address.strip("[]"), peer_port))

    servers = listen(directory, cert, key, hosts, see)
    for made in servers:
        made.wait_for_termination()


def open_channel(cert, url):
    """A connection of its own, to a name that the certificate has."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost")]
    credentials = grpc.ssl_channel_credentials(read(cert))
    return grpc.secure_channel(urllib.parse.urlsplit(url).netloc, credentials, options=options)


def call(channel, message, size):
    """One of each kind with `message`, padded to `size`."""
    padded = message.ljust(size, b".")
    assert channel.unary_unary("/e2e.Echo/One")(padded, timeout=30) == padded
    assert list(channel.unary_stream("/e2e.Echo/Stream")(padded, timeout=30)) == [padded] * PIECES
    pieces = [padded] * PIECES
    assert channel.stream_unary("/e2e.Echo/Gather")(iter(pieces), timeout=30) == b"".join(pieces)
    assert list(channel.stream_stream("/e2e.Echo/Chat")(iter(pieces), timeout=30)) == pieces


def ask(cert, channels, requests, *urls):
    def one(number):
        rng = random.Random(number)
        with open_channel(cert, urls[number % len(urls)]) as channel:
            for request in range(int(requests)):
                call(channel, b"nonce-%04d-%04d" % (number, request), rng.randint(20, 3000))

    with concurrent.futures.ThreadPoolExecutor(int(channels)) as threads:
        list(threads.map(one, range(int(channels))))


def both(directory, cert, key, url):
    """The process just ends, as soon as nothing is under way any more: of two that close, one does not read the other's
    last words."""
    _servers = listen(directory, cert, key, ["127.0.0.1"], lambda *_: None)
    channel = open_channel(cert, url)
    rng = random.Random(5)
    for size in (1, 1000, 16384, 100_003):
        call(channel, rng.randbytes(size), size)
    time.sleep(1)
    os._exit(0)


if os.environ.get("E2E_PDEATHSIG", "1") == "1":
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
signal.alarm(int(os.environ.get("E2E_SECONDS", "60")))
{"ask": ask, "both": both, "serve": serve}[sys.argv[1]](*sys.argv[2:])
