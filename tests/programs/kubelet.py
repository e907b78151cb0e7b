"""Speaks CRI, the protocol between kubelet and container runtime, as far as the tests need it.

kubelet.py SOCKET METHOD REQUEST: one call; REQUEST and what is printed are JSON, with those fields that are named here.
Messages are encoded by hand: the numbers are those of api.proto, version v1.
"""

import json
import sys

import grpc

STRING, NUMBER, STRINGS, MAP = "string", "number", "strings", "map"

POD = {
    "metadata": (1, {"name": (1, STRING), "uid": (2, STRING), "namespace": (3, STRING)}),
    "hostname": (2, STRING),
    "log_directory": (3, STRING),
    "labels": (6, MAP),
    "annotations": (7, MAP),
}
NAMESPACES = {"network": (1, NUMBER), "pid": (2, NUMBER)}
PROFILE = {"profile_type": (1, NUMBER)}
POD["linux"] = (
    8,
    {
        "cgroup_parent": (1, STRING),
        "security_context": (2, {"namespace_options": (1, NAMESPACES), "seccomp": (9, PROFILE)}),
    },
)
VALUE = {"value": (1, NUMBER)}
SECURITY = {
    "capabilities": (1, {"add_capabilities": (1, STRINGS), "drop_capabilities": (2, STRINGS)}),
    "namespace_options": (3, NAMESPACES),
    "run_as_user": (5, VALUE),
    "run_as_group": (12, VALUE),
    "readonly_rootfs": (7, NUMBER),
    "no_new_privs": (11, NUMBER),
    "masked_paths": (13, STRINGS),
    "readonly_paths": (14, STRINGS),
    "seccomp": (15, PROFILE),
}
MOUNT = {
    "container_path": (1, STRING),
    "host_path": (2, STRING),
    "readonly": (3, NUMBER),
    "propagation": (5, NUMBER),
}
CONTAINER = {
    "metadata": (1, {"name": (1, STRING)}),
    "image": (2, {"image": (1, STRING)}),
    "command": (3, STRINGS),
    "args": (4, STRINGS),
    "envs": (6, MAP),
    "mounts": (7, [MOUNT]),
    "labels": (9, MAP),
    "log_path": (11, STRING),
    "linux": (
        15,
        {"resources": (1, {"memory_limit_in_bytes": (4, NUMBER)}), "security_context": (2, SECURITY)},
    ),
}
ONE_POD = {"pod_sandbox_id": (1, STRING)}
ONE = {"container_id": (1, STRING)}
STATUS = {"id": (1, STRING), "state": (3, NUMBER), "exit_code": (7, NUMBER)}

# What is asked and what is answered.
METHODS = {
    "RunPodSandbox": ({"config": (1, POD)}, ONE_POD),
    "StopPodSandbox": (ONE_POD, {}),
    "RemovePodSandbox": (ONE_POD, {}),
    "CreateContainer": ({**ONE_POD, "config": (2, CONTAINER), "sandbox_config": (3, POD)}, ONE),
    "StartContainer": (ONE, {}),
    "StopContainer": ({**ONE, "timeout": (2, NUMBER)}, {}),
    "RemoveContainer": (ONE, {}),
    "ExecSync": (
        {**ONE, "cmd": (2, STRINGS), "timeout": (3, NUMBER)},
        {"stdout": (1, STRING), "stderr": (2, STRING), "exit_code": (3, NUMBER)},
    ),
    "ContainerStatus": ({**ONE, "verbose": (2, NUMBER)}, {"status": (1, STATUS), "info": (2, MAP)}),
}


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def encode(message, schema):
    out = b""
    for name, value in message.items():
        number, kind = schema[name]
        if kind == STRING:
            out += field(number, value.encode())
        elif kind == NUMBER:
            out += varint(number << 3) + varint(int(value))
        elif kind == STRINGS:
            out += b"".join(field(number, one.encode()) for one in value)
        elif kind == MAP:
            for key, one in value.items():
                out += field(number, field(1, key.encode()) + field(2, one.encode()))
        elif isinstance(kind, list):
            out += b"".join(field(number, encode(one, kind[0])) for one in value)
        else:
            out += field(number, encode(value, kind))
    return out


def fields(data):
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            yield tag >> 3, number()
        elif tag & 7 == 2:
            size = number()
            at += size
            yield tag >> 3, data[at - size : at]
        else:
            raise ValueError(f"wire type {tag & 7}")


def decode(data, schema):
    names = {number: (name, kind) for name, (number, kind) in schema.items()}
    message = {name: {} if kind == MAP else 0 if kind == NUMBER else "" for name, kind in names.values()}
    for number, value in fields(data):
        name, kind = names.get(number, (None, None))
        if kind == STRING:
            message[name] = value.decode(errors="replace")
        elif kind == NUMBER:
            message[name] = value
        elif kind == MAP:
            pair = dict(fields(value))
            message[name][pair[1].decode()] = pair[2].decode()
        elif kind is not None:
            message[name] = decode(value, kind)
    return message


def main():
    socket, method, call = sys.argv[1:]
    # The name of the socket is no name of a host, which some servers insist on.
    channel = grpc.insecure_channel("unix://" + socket, [("grpc.default_authority", "localhost")])
    request, response = METHODS[method]
    stub = channel.unary_unary("/runtime.v1.RuntimeService/" + method)
    try:
        answer = stub(encode(json.loads(call), request), timeout=60, wait_for_ready=True)
    except grpc.RpcError as error:
        sys.exit(method + ": " + error.details())
    print(json.dumps(decode(answer, response)))


main()
