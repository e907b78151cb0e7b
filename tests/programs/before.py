"""A server that clients talk to, as one tree of processes.

usage: before.py PORT SERVER... -- CLIENT...

Starts SERVER, waits until PORT is open, runs CLIENT to its end, has SERVER end by SIGQUIT, and returns what the client
returned.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

port, *words = sys.argv[1:]
middle = words.index("--")
seconds = int(os.environ.get("E2E_SECONDS", "60"))


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


die_with_parent()
signal.alarm(seconds * 3)
server = subprocess.Popen(words[:middle], preexec_fn=die_with_parent)
end = time.monotonic() + seconds
while True:
    try:
        socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
        break
    except OSError:
        if server.poll() is not None or time.monotonic() > end:
            sys.exit("the server does not listen: %s" % server.returncode)
        time.sleep(0.02)
client = subprocess.Popen(words[middle + 1 :], preexec_fn=die_with_parent)
code = client.wait()
server.send_signal(signal.SIGQUIT)
server.wait(30)
sys.exit(code)
