"""A TLS server on several addresses that writes down between which two ends each request came.

usage: nonce_server.py --dir DIR --name NAME --cert CERT --key KEY HOST...

All hosts get the same port number, which is in `NAME.port` once the server listens on each of them.
A host `::` takes IPv4 too. For every request there is a line in `NAME.accepted`, written before the answer:

  PATH LOCAL-ADDRESS LOCAL-PORT PEER-ADDRESS PEER-PORT

as the accepted socket says. The answer repeats the path, in one write. A request with `connection: close`
is the last one of its connection.
"""

import argparse
import ctypes
import errno
import os
import signal
import socket
import ssl
import threading


def listen(hosts):
    """One port that is free at each of the hosts."""
    while True:
        listeners = []
        port = 0
        try:
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                dual = host == "::"
                listeners.append(socket.create_server((host, port), family=family, dualstack_ipv6=dual))
                port = listeners[0].getsockname()[1]
            return port, listeners
        except OSError as error:
            for listener in listeners:
                listener.close()
            if error.errno != errno.EADDRINUSE or port == 0:
                raise


def serve(sock, context, accepted):
    try:
        sock.settimeout(60)
        with context.wrap_socket(sock, server_side=True) as tls:
            head = b""
            while True:
                data = tls.recv(65536)
                if not data:
                    return
                head += data
                if not head.endswith(b"\r\n\r\n"):
                    continue
                path = head.split(b" ")[1].decode()
                last = b"\r\nconnection: close\r\n" in head.lower()
                head = b""
                local, peer = tls.getsockname(), tls.getpeername()
                accepted.write("%s %s %d %s %d\n" % (path, local[0], local[1], peer[0], peer[1]))
                body = path.encode() + b"\n"
                more = b"connection: close\r\n" if last else b""
                tls.sendall(b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (more, len(body), body))
                if last:
                    return
    except OSError:
        pass
    finally:
        sock.close()


def accept(listener, context, accepted):
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock, context, accepted), daemon=True).start()


def main():
    parser = argparse.ArgumentParser()
    for option in ("--dir", "--name", "--cert", "--key"):
        parser.add_argument(option, required=True)
    parser.add_argument("hosts", nargs="+")
    args = parser.parse_args()

    if os.environ.get("E2E_PDEATHSIG", "1") == "1":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    signal.alarm(300)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.cert, args.key)
    base = os.path.join(args.dir, args.name)
    accepted = open(base + ".accepted", "w", buffering=1)
    port, listeners = listen(args.hosts)
    for listener in listeners:
        threading.Thread(target=accept, args=(listener, context, accepted), daemon=True).start()
    with open(base + ".port.new", "w") as file:
        file.write("%d\n" % port)
    os.rename(base + ".port.new", base + ".port")
    threading.Event().wait()


main()
