"""Serves every socket that sd_listen_fds(3) names, whatever kind it is: a client is answered with the socket's name and what it sent.

Ends when its standard input does.
"""

import contextlib
import os
import socket
import sys
import threading

if os.environ.get("LISTEN_PID") != str(os.getpid()):
    sys.exit(f"LISTEN_PID is {os.environ.get('LISTEN_PID')}, and this is {os.getpid()}")
count = int(os.environ["LISTEN_FDS"])
names = os.environ["LISTEN_FDNAMES"].split(":")
assert len(names) == count, names


def serve(name, server):
    while True:
        if server.type == socket.SOCK_DGRAM:
            said, client = server.recvfrom(1024)
            server.sendto(name.encode() + b" " + said, client)
            continue
        client, _ = server.accept()
        with client, contextlib.suppress(OSError):  # A client that goes away misses nothing.
            client.sendall(name.encode() + b" " + client.recv(1024))


def described(server):
    """Returns what a test needs to connect: the kind, and the address."""
    kind = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "datagram", socket.SOCK_SEQPACKET: "seqpacket"}[server.type]
    address = server.getsockname()
    if server.family == socket.AF_UNIX:
        path = "@" + address[1:].decode() if isinstance(address, bytes) else address
        return f"unix {kind} {path}"
    host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(address[0], address[0])
    return f"inet {kind} [{host}]:{address[1]}" if ":" in host else f"inet {kind} {host}:{address[1]}"


for number, name in enumerate(names, start=3):
    server = socket.socket(fileno=number)
    print(name, described(server))
    threading.Thread(target=serve, args=(name, server), daemon=True).start()
print("serving", flush=True)
sys.stdin.read()
