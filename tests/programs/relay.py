"""Passes bytes on, both ways, and looks at none of them: usage: relay.py FROM_PORT_FILE TO_PORT CONNECTIONS"""

import ctypes
import select
import signal
import socket
import sys

# With its parent, and never for long.
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.alarm(60)

listener = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[1], "w") as file:
    file.write(str(listener.getsockname()[1]))
for _ in range(int(sys.argv[3])):
    near, _ = listener.accept()
    far = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    other = {near: far, far: near}
    while other:
        for source in select.select(list(other), [], [])[0]:
            data = source.recv(65536)
            if data:
                other[source].sendall(data)
            else:
                other = {}
                break
    near.close()
    far.close()
