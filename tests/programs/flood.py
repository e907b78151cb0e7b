"""New TLS connections one after the other, as fast as they can be made, until somebody says that it is enough.

usage: flood.py DIR CERT KEY

Both ends are objects of this process over memory BIOs. Each connection carries one exchange of HTTP, of the same size
each time, and ends. When there is DIR/calm it pauses; when there is DIR/end it makes AFTER more connections, writes
into DIR/count how many there were in all, and ends.
"""

import os
import signal
import ssl
import sys
import time

AFTER = 20
signal.alarm(150)
# Of what nobody else wants: tests that run beside it count milliseconds.
os.nice(10)
directory, cert, key = sys.argv[1:]
REQUEST = b"POST /flood HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n" + b"q" * 1000
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n" + b"a" * 4000

accepts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
accepts.load_cert_chain(cert, key)
accepts.num_tickets = 0
connects = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
connects.check_hostname = False
connects.verify_mode = ssl.CERT_NONE


def there_is(name):
    return os.path.exists(os.path.join(directory, name))


def shake(client, server):
    waiting = [client, server]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass


def carry(sender, receiver, message):
    assert sender.write(message) == len(message)
    got = 0
    while got < len(message):
        got += len(receiver.read(len(message) - got))


def connection():
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = connects.wrap_bio(down, up)
    server = accepts.wrap_bio(up, down, server_side=True)
    shake(client, server)
    carry(client, server, REQUEST)
    carry(server, client, RESPONSE)


count = 0
while not there_is("calm"):
    connection()
    count += 1
while not there_is("end"):
    time.sleep(0.1)
for _ in range(AFTER):
    connection()
count += AFTER
with open(os.path.join(directory, "count"), "w") as file:
    file.write("%d %d\n" % (count, len(REQUEST) + len(RESPONSE)))
