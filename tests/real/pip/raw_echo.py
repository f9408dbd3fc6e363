"""A service for tests/real that answers with what it was sent, as JSON: the request target byte by byte, and the cookies.

Prints its port, and listens until standard input ends.
"""

import json
import os
import socketserver
import sys
import threading


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline():
            cookies = []
            while (field := self.rfile.readline()).strip():
                name, _, value = field.partition(b":")
                if name.lower() == b"cookie":
                    cookies += value.strip().decode("latin-1").split("; ")
            seen = {"target": line.split(b" ")[1].decode("latin-1"), "cookies": cookies}
            content = json.dumps(seen).encode()
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)
            )


socketserver.ThreadingTCPServer.daemon_threads = True
server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
os._exit(0)
