"""An image in an OCI layout for tests/real, with one layer of random bytes: `oci_image.py FOLDER BYTES`. Its tag is `v1`."""

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile

ROOT, SIZE = sys.argv[1], int(sys.argv[2])


def blob(media_type, content):
    digest = hashlib.sha256(content).hexdigest()
    with open(f"{ROOT}/blobs/sha256/{digest}", "wb") as file:
        file.write(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def layer():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        file = tarfile.TarInfo("data")
        file.size = SIZE
        tar.addfile(file, io.BytesIO(os.urandom(SIZE)))
    return archive.getvalue()


def write(name, content):
    with open(f"{ROOT}/{name}", "w") as file:
        json.dump(content, file)


os.makedirs(f"{ROOT}/blobs/sha256")
layer = layer()
manifest = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": blob(
        "application/vnd.oci.image.config.v1+json",
        json.dumps({
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }).encode(),
    ),
    "layers": [blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(layer, 1))],
}
described = blob(manifest["mediaType"], json.dumps(manifest).encode())
described["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
write("index.json", {"schemaVersion": 2, "manifests": [described]})
write("oci-layout", {"imageLayoutVersion": "1.0.0"})
