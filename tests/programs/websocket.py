"""WebSocket by the wheel `websockets`, with permessage-deflate as it comes: each end writes down what it sent and got.

usage: websocket.py serve DIR CERT KEY    the port is in DIR/websocket.port; what comes is sent back
       websocket.py ask DIR CERT PORT CONNECTIONS MESSAGES
A line of DIR/websocket.messages is one message that the client sent, as JSON: connection, type, and its text, or its
bytes as text. Every message comes back as it is, so each counts in both directions.
"""

import asyncio
import ctypes
import json
import os
import random
import signal
import ssl
import sys

import websockets.asyncio.client
import websockets.asyncio.server


async def echo(connection):
    async for message in connection:
        if isinstance(message, str):
            await connection.send(message)
        else:
            # In fragments.
            await connection.send(iter([message[: len(message) // 2], message[len(message) // 2 :]]))


async def serve(directory, cert, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    async with websockets.asyncio.server.serve(echo, "127.0.0.1", 0, ssl=context) as server:
        path = os.path.join(directory, "websocket.port")
        with open(path + ".new", "w") as file:
            file.write("%d\n" % server.sockets[0].getsockname()[1])
        os.rename(path + ".new", path)
        await server.serve_forever()


async def one(number, messages, port, context, log):
    rng = random.Random(number)
    compression = None if number % 3 == 2 else "deflate"
    url = "wss://127.0.0.1:%s/socket-%d" % (port, number)
    async with websockets.asyncio.client.connect(url, ssl=context, compression=compression) as connection:
        for at in range(int(messages)):
            text = ("message %d of %d, " % (at, number) * rng.choice([1, 3, 40, 3000]))[: rng.choice([30, 126, 70000])]
            message = text if at % 2 == 0 else text.encode()
            await connection.send(message)
            assert await connection.recv() == message
            log.write(json.dumps({"connection": number, "type": "text" if at % 2 == 0 else "binary", "text": text}) + "\n")


async def ask(directory, cert, port, connections, messages):
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    with open(os.path.join(directory, "websocket.messages"), "w") as log:
        await asyncio.gather(*(one(number, messages, port, context, log) for number in range(int(connections))))


ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.alarm(120)
asyncio.run({"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:]))
