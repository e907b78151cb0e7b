"""Calls a container runtime by its Container Runtime Interface: cri.py SOCKET < CALLS

Each line is a JSON list: the name of a method, and its message as a list of [field number, value], where a value is a
text, a number, or such a list again. Prints field 1 of each answer, which is an id wherever one is wanted.
"""
import json, sys, time
import grpc


def varint(number):
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(parts + [number])


def encode(fields):
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
            continue
        value = value.encode() if isinstance(value, str) else encode(value)
        out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def first(answer):
    """Shorter than 128 bytes, as ids are."""
    return answer[2 : 2 + answer[1]].decode() if answer[:1] == b"\x0a" else ""


def answer(call, message):
    """Of a runtime that is just being started, too, or has not heard yet that a container has ended."""
    until = time.monotonic() + 20
    while True:
        try:
            return call(message, timeout=20, wait_for_ready=True)
        except grpc.RpcError as error:
            is_early = any(words in error.details() for words in ("not initialized yet", "is still running"))
            if not is_early or time.monotonic() > until:
                raise
        time.sleep(0.05)


options = [("grpc.default_authority", "localhost")]
with grpc.insecure_channel("unix://" + sys.argv[1], options=options) as channel:
    for line in sys.stdin:
        method, message = json.loads(line)
        call = channel.unary_unary("/runtime.v1.RuntimeService/" + method)
        print(first(answer(call, encode(message))), flush=True)
