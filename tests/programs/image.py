"""Makes an image of a directory: image.py DIRECTORY NAME OUTPUT COMMAND…

One layer, in the layout of the Open Container Initiative, in a tar that `ctr images import` and `podman load` take.
"""
import hashlib, io, json, sys, tarfile

directory, name, output, *command = sys.argv[1:]


def packed(add):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        add(tar)
    return out.getvalue()


blobs = {}


def blob(data, kind):
    if not isinstance(data, bytes):
        data = json.dumps(data).encode()
    digest = hashlib.sha256(data).hexdigest()
    blobs["blobs/sha256/" + digest] = data
    return {"mediaType": "application/vnd.oci.image." + kind, "digest": "sha256:" + digest, "size": len(data)}


layer = blob(packed(lambda tar: tar.add(directory, arcname="")), "layer.v1.tar")
config = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Entrypoint": command},
    "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
}
manifest = {"schemaVersion": 2, "config": blob(config, "config.v1+json"), "layers": [layer]}
entry = blob(manifest, "manifest.v1+json")
entry["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
files = {
    "oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}).encode(),
    "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
    **blobs,
}


def every(tar):
    for path, data in files.items():
        member = tarfile.TarInfo(path)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


with open(output, "wb") as out:
    out.write(packed(every))
