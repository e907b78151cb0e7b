"""A request by a thread that renames itself, then one by a leader that does.

usage: names.py PORT
"""

import ctypes
import http.client
import os
import signal
import ssl
import sys
import threading
import time

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
signal.alarm(int(os.environ.get("E2E_SECONDS", "60")))


def request(body):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    conn = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[1]), context=context, timeout=30)
    conn.request("POST", "/echo", body)
    assert conn.getresponse().read() == body
    conn.close()


def renamed(name, body):
    # Longer than what was sent before takes to be told, and then than the news of the name.
    time.sleep(1)
    libc.prctl(PR_SET_NAME, name)
    time.sleep(1)
    request(body)


thread = threading.Thread(target=renamed, args=(b"e2e-thread", b"by-a-thread"))
thread.start()
thread.join()
renamed(b"e2e-leader", b"by-the-leader")
