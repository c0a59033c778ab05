"""`bare.c` for where there is no C compiler: the same loop in Python."""

import socket
import sys


def main() -> None:
    count = int(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    connections = []
    for _ in range(count):
        connection = listener.accept()[0]
        connections.append(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not connection.recv(4096).endswith(b"\r\n\r\n"):
            """The rest of the request."""
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    sends = [connection.sendall for connection in connections]
    for line in sys.stdin:
        messages, size = map(int, line.split())
        message = b"x" * size
        for _ in range(messages):
            for send in sends:
                send(message)
        print("{}", flush=True)


if __name__ == "__main__":
    main()
