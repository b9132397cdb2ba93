"""A server of the class of `python3 -m http.server`, on the descriptor that is its argument,
or on PORT: POST /add?id=ID appends a line to a file.

Every line that is acknowledged is on disk. On SIGTERM it accepts no more, lets its threads finish, and exits.
"""

import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

VERSION = Path(__file__).with_name("VERSION").read_bytes()
DATA = Path(os.environ["DATA"]) / "added"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Who keeps a connection and says nothing is not waited for any longer.
    timeout = 5

    def do_GET(self):
        url = urlsplit(self.path)
        self.answer(DATA.read_bytes() if url.path == "/all" else VERSION)

    def do_POST(self):
        with open(DATA, "a") as file:
            file.write(parse_qs(urlsplit(self.path).query)["id"][0] + "\n")
            file.flush()
            os.fdatasync(file.fileno())
        self.answer(b"ok\n")

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if stopping.is_set():
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    # Whoever ends waits for its threads.
    daemon_threads = False

    request_queue_size = 4096


def serving():
    if "PORT" in os.environ:
        return Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
    passed = Server(("", 0), Handler, bind_and_activate=False)
    passed.socket.close()
    passed.socket = socket.socket(fileno=int(sys.argv[1]))
    return passed


def stop():
    # Not a handler, which may come while this thread starts another one and has the lock that it would need.
    signal.sigwait({signal.SIGTERM})
    stopping.set()
    server.shutdown()


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
stopping = threading.Event()
server = serving()
threading.Thread(target=stop, daemon=True).start()
server.serve_forever(poll_interval=0.01)
server.server_close()
