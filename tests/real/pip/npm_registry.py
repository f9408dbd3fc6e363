"""A registry for npm in tests/real: publishes, serves, tags and withdraws packages, scoped ones too.

Prints its port, and listens until standard input ends. It knows a package by the one spelling of its path that npm
sends (`/@scope%2fname`), and so notices any other.
"""

import base64
import hashlib
import http.server
import json
import os
import sys
import threading
import urllib.parse

PACKAGES, TARBALLS = {}, {}


class Registry(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/-/ping":
            return self.answer(200, {})
        if path == "/-/whoami":
            return self.answer(200, {"username": "alice"})
        if path in TARBALLS:
            return self.answer(200, TARBALLS[path])
        if path.startswith("/-/package/") and path.endswith("/dist-tags"):
            return self.answer(200, self.package(path[len("/-/package/"):-len("/dist-tags")])["dist-tags"])
        package = self.package(path[1:])
        if package is None:
            return self.answer(404, {"error": "not found"})
        tag = json.dumps(package, sort_keys=True).encode()
        tag = f'"{hashlib.sha256(tag).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag:
            return self.answer(304, None, ETag=tag)
        return self.answer(200, package, ETag=tag)

    def do_PUT(self):
        path, sent = self.path.split("?")[0], json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization") != "Bearer a-token":
            return self.answer(401, {"error": "log in first"})
        if path.startswith("/-/package/"):
            name, tag = path[len("/-/package/"):].split("/dist-tags/")
            self.package(name)["dist-tags"][tag] = sent
            return self.answer(201, {})
        name = path[1:].split("/-rev/")[0]
        for file, attachment in sent.pop("_attachments", {}).items():
            # A tarball's address begins with the address that npm published to.
            TARBALLS[f"/{urllib.parse.unquote(name)}/-/{file}"] = base64.b64decode(attachment["data"])
        package = PACKAGES.setdefault(name, {"name": sent["name"], "_id": sent["name"], "_rev": "1", "versions": {}, "dist-tags": {}})
        package["versions"] |= sent["versions"]
        package["dist-tags"] |= sent.get("dist-tags", {})
        return self.answer(201, {"ok": True})

    def do_DELETE(self):
        name = self.path[1:].split("/-rev/")[0]
        found = PACKAGES.pop(name, None) or TARBALLS.pop("/" + name, None)
        return self.answer(200 if found else 404, {})

    def package(self, name):
        return PACKAGES.get(name)

    def answer(self, status, content, **fields):
        if not isinstance(content, bytes):
            content = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status != 304:
            self.wfile.write(content)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
os._exit(0)
