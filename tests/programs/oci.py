"""oci.py OUT NAME PROGRAM: an image for containerd with this one program in it, which it runs."""

import hashlib
import io
import json
import sys
import tarfile


def put(archive, name, data, mode=0o644):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def blob(archive, kind, data):
    digest = hashlib.sha256(data).hexdigest()
    put(archive, "blobs/sha256/" + digest, data)
    return {"mediaType": "application/vnd.oci.image." + kind, "digest": "sha256:" + digest, "size": len(data)}


def main():
    out, name, program = sys.argv[1:]
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive, open(program, "rb") as file:
        put(archive, "program", file.read(), 0o755)
    layer = layer.getvalue()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/program"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }
    with tarfile.open(out, "w") as archive:
        manifest = {
            "schemaVersion": 2,
            "config": blob(archive, "config.v1+json", json.dumps(config).encode()),
            "layers": [blob(archive, "layer.v1.tar", layer)],
        }
        entry = blob(archive, "manifest.v1+json", json.dumps(manifest).encode())
        entry["annotations"] = {"io.containerd.image.name": name}
        put(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        put(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')


main()
