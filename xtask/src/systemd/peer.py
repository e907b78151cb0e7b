"""The two ends of a TLS connection of lines.

peer.py serve PORT CERTIFICATE          answers each line with one of its own
peer.py ask PORT NAME COUNT [UNTIL]     asks COUNT times, and goes on until the file UNTIL is there

Who asks prints what it is and what it said and heard, as JSON.
"""

import json
import os
import socket
import ssl
import sys
import threading
import time

LONGEST_S = 300


def answer(line):
    return b"answer to " + line


def serve(port, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        raw, _ = listener.accept()
        threading.Thread(target=talk, args=(context, raw), daemon=True).start()


def talk(context, raw):
    raw.settimeout(LONGEST_S)
    try:
        with context.wrap_socket(raw, server_side=True) as tls:
            for line in tls.makefile("rb"):
                tls.sendall(answer(line))
    except OSError as error:
        print(f"a connection ended: {error}", file=sys.stderr, flush=True)


def ask(port, name, count, until):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    raw = socket.create_connection(("127.0.0.1", port), timeout=LONGEST_S)
    end = time.monotonic() + LONGEST_S
    sent, received = [], []
    with context.wrap_socket(raw) as tls:
        answers = tls.makefile("rb")
        number = 0
        while number < count or (until and not os.path.exists(until)):
            if time.monotonic() > end:
                sys.exit("nobody said that it is enough")
            line = f"{name} asks {number} {'.' * (number % 700)}\n".encode()
            tls.sendall(line)
            heard = answers.readline()
            if heard != answer(line):
                sys.exit(f"heard {heard!r}")
            sent.append(line.decode())
            received.append(heard.decode())
            number += 1
            time.sleep(0.005)
    with open("/proc/self/cgroup") as groups:
        group = groups.read().strip()
    told = {
        "pid": os.getpid(),
        "group": group,
        "count": number,
        "sent": "".join(sent),
        "received": "".join(received),
    }
    print(json.dumps(told))


match sys.argv[1:]:
    case ["serve", port, certificate]:
        serve(int(port), certificate)
    case ["ask", port, name, count, *until]:
        ask(int(port), name, int(count), until[0] if until else None)
    case _:
        sys.exit(__doc__)
