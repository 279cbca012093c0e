from socket import socket

# A socket only as far as `http.client.HTTPResponse` looks: it has `makefile`.
class FakeSock(socket):
    def __init__(self, data: bytes) -> None: ...
