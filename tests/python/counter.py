"""The daemon that is handed over, and knows nothing of that: the counter of tests/examples/counter.rs, in one thread.
A disk that fails ends it: what is on disk is known then only by reading it again."""
import contextlib, os, selectors, socket, time
from functools import partial


class Counter:
    """Answers `incr` and `get`, a line each. The data is a byte for each increment, so that none can be torn."""

    def __init__(self, directory, listener):
        self.directory, self.listener, self.clients = os.path.realpath(directory), listener, {}
        self.selector = selectors.DefaultSelector()

    def open(self):
        """Reads the data, and changes nothing."""
        self.file = open(os.path.join(self.directory, "count"), "r+b", buffering=0)
        os.fdatasync(self.file)  # What a crash left in the page cache alone must not be shown before it is on disk.
        self.value = self.file.seek(0, os.SEEK_END)

    def address(self):
        return "%s:%d" % self.listener.getsockname()[:2]

    def watch(self, source, act, *args):
        """Has this done whenever there is something to read."""
        self.selector.register(source, selectors.EVENT_READ, partial(act, *args))

    def turn(self, seconds):
        """Waits for something to do, for no longer than this, and does it."""
        for key, _ in self.selector.select(max(0, min(seconds, 60))):
            if self.selector.get_map().get(key.fd) is key:  # Otherwise it was dropped a moment ago.
                key.data()

    def accept(self):
        """Lets clients in. Other processes share this socket: it is never shut down, and its flags are left alone."""
        self.watch(self.listener, self.admit, self.listener, self.greet)

    def admit(self, door, greet):
        try:
            guest = door.accept()[0]
        except OSError:  # There is no descriptor left for him: he has to wait, and this must not spin.
            time.sleep(0.01)
        else:
            greet(guest)

    def greet(self, client):
        self.clients[client] = b""
        self.watch(client, self.serve, client)

    def serve(self, client):
        """Answers what a client has asked so far. Every increment that is answered is on disk."""
        data, answers = b"", b""
        with contextlib.suppress(OSError):
            data = client.recv(65536)
        *requests, self.clients[client] = (self.clients[client] + data).split(b"\n")
        for request in requests:
            if request == b"incr":
                self.file.write(b"+")
                os.fdatasync(self.file)
                self.value += 1
            answers += b"%d\n" % self.value if request in (b"incr", b"get") else b"expected incr or get\n"
        try:
            client.sendall(answers, socket.MSG_DONTWAIT)
        except OSError:  # He is gone, or does not read what he is told.
            data = b""
        if not data:
            self.drop(client)

    def drop(self, client):
        del self.clients[client]
        self.selector.unregister(client)
        client.close()

    def drain(self, until):
        """Lets nobody in: who comes waits in the queue for whoever serves next. Clients get the answers to what they
        have sent; returns how many had not gone in time, and get no more."""
        self.selector.unregister(self.listener)
        quiet = time.monotonic() + 0.1  # So long may somebody think who has just come.
        while self.clients and time.monotonic() < until:
            self.turn(0.01)
            for client in [*self.clients] if time.monotonic() > quiet else []:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RD)  # What has arrived can still be read, and then there is an end.
        left = [*self.clients]
        for client in left:
            self.drop(client)
        return len(left)
