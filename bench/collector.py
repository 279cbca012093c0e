"""A collector that takes everything and looks at nothing, in a process of its own: prints its port and serves."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Take(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), _Take) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
