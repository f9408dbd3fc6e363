"""A package index for pip in tests/real (PEP 503): one package with a local version, whose file has a `+` in its name.

Prints its port, and listens until standard input ends.
"""

import base64
import hashlib
import http.server
import io
import os
import sys
import threading
import zipfile

FILE = "northgate_sample-1.0+local.1-py3-none-any.whl"


def wheel():
    files = {
        "northgate_sample.py": b"ANSWER = 42\n",
        "northgate_sample-1.0+local.1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: northgate-sample\nVersion: 1.0+local.1\n",
        "northgate_sample-1.0+local.1.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digest = lambda content: base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    record = "".join(f"{name},sha256={digest(content)},{len(content)}\n" for name, content in files.items())
    files["northgate_sample-1.0+local.1.dist-info/RECORD"] = record.encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return archive.getvalue()


WHEEL = wheel()
HASH = hashlib.sha256(WHEEL).hexdigest()
# Relative to the page, as most indexes write it, and with the `+` escaped.
PAGE = f'<a href="../../files/{FILE.replace("+", "%2B")}#sha256={HASH}">{FILE}</a>'.encode()


class Index(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        found = {
            "/simple/northgate-sample/": (PAGE, "text/html"),
            f"/files/{FILE.replace('+', '%2B')}": (WHEEL, "application/octet-stream"),
            "/hash": (HASH.encode(), "text/plain"),
        }
        content, kind = found.get(self.path, (b"", "text/plain"))
        self.send_response(200 if content else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
os._exit(0)
