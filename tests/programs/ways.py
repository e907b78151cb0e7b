# usage: ways.py PORT: sends and receives a thousand bytes at a time by ordinary calls, and between these by sendmmsg and
# recvmmsg (twice a thousand), splice, and io_uring. The other end is its child.
import ctypes
import mmap
import os
import signal
import socket
import struct
import sys

WAY = (bytes(range(256)) * 4)[:1000]
TIMES = 8
libc = ctypes.CDLL(None, use_errno=True)


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class Header(ctypes.Structure):
    """`struct msghdr`"""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vector", ctypes.POINTER(Vector)),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class Message(ctypes.Structure):
    """`struct mmsghdr`"""

    _fields_ = [("header", Header), ("done", ctypes.c_uint)]


def ordinary(client, is_sent):
    if is_sent:
        client.sendall(WAY)
    else:
        assert client.recv(len(WAY), socket.MSG_WAITALL) == WAY


def several(client, is_sent):
    """Two messages in one call."""
    buffers = [ctypes.create_string_buffer(WAY, len(WAY)) for _ in range(2)]
    vectors = [Vector(ctypes.addressof(one), len(WAY)) for one in buffers]
    headers = [Header(vector=ctypes.pointer(one), count=1) for one in vectors]
    messages = (Message * 2)(*[Message(one) for one in headers])
    if is_sent:
        done = checked(libc.sendmmsg(client.fileno(), messages, 2, 0))
    else:
        done = checked(libc.recvmmsg(client.fileno(), messages, 2, socket.MSG_WAITALL, None))
    assert done == 2 and all(one.done == len(WAY) for one in messages)
    assert all(one.raw == WAY for one in buffers)


def through_a_pipe(client, is_sent):
    reader, writer = os.pipe()
    if is_sent:
        os.write(writer, WAY)
        assert os.splice(reader, client.fileno(), len(WAY)) == len(WAY)
    else:
        content = b""
        while len(content) < len(WAY):
            moved = os.splice(client.fileno(), writer, len(WAY) - len(content))
            assert moved > 0
            content += os.read(reader, moved)
        assert content == WAY
    os.close(reader)
    os.close(writer)


def by_ring(client, is_sent):
    """`io_uring(7)`; where that is switched off, by splice once more."""
    SETUP, ENTER, SEND, RECEIVE, GET_EVENTS = 425, 426, 26, 27, 1
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(SETUP, 1, parameters)
    if ring < 0:
        return through_a_pipe(client, is_sent)
    if not is_sent:
        # Before 5.19 it does not wait for all of it.
        client.recv(len(WAY), socket.MSG_PEEK | socket.MSG_WAITALL)
    words = struct.unpack("30I", parameters.raw)
    (tail_at, array_at), entries_at = (words[11], words[16]), words[25]
    size = 4096
    queue = mmap.mmap(ring, size, offset=0)
    done = mmap.mmap(ring, size, offset=0x8000000)
    entries = mmap.mmap(ring, size, offset=0x10000000)
    buffer = ctypes.create_string_buffer(WAY if is_sent else bytes(len(WAY)), len(WAY))
    entry = struct.pack(
        "=BBHiQQIi",
        SEND if is_sent else RECEIVE,
        0,
        0,
        client.fileno(),
        0,
        ctypes.addressof(buffer),
        len(WAY),
        0 if is_sent else socket.MSG_WAITALL,
    )
    entries[: len(entry)] = entry
    queue[array_at : array_at + 4] = struct.pack("I", 0)
    queue[tail_at : tail_at + 4] = struct.pack("I", 1)
    checked(libc.syscall(ENTER, ring, 1, 1, GET_EVENTS, None, 0))
    _, result, _ = struct.unpack_from("=QiI", done, entries_at)
    assert result == len(WAY), result
    assert buffer.raw == WAY
    for map in (queue, done, entries):
        map.close()
    os.close(ring)


def other_end(port, ready):
    """Sends back what comes, once all of it has come."""
    libc.prctl(1, signal.SIGKILL)
    signal.alarm(60)
    with socket.create_server(("127.0.0.1", port)) as listener:
        os.write(ready, b"1")
        connection, _ = listener.accept()
    content = b""
    while len(content) < TIMES * len(WAY):
        content += connection.recv(65536)
    assert content == WAY * TIMES
    connection.sendall(content)
    assert connection.recv(1) == b""


def main():
    signal.alarm(60)
    port = int(sys.argv[1])
    reader, ready = os.pipe()
    child = os.fork()
    if child == 0:
        other_end(port, ready)
        os._exit(0)
    os.read(reader, 1)
    client = socket.create_connection(("127.0.0.1", port))
    for is_sent in (True, False):
        for way in (several, through_a_pipe, by_ring):
            ordinary(client, is_sent)
            way(client, is_sent)
        ordinary(client, is_sent)
    client.close()
    assert os.waitpid(child, 0)[1] == 0


main()
