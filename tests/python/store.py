"""A daemon with data, such as anybody has: here one that redis-cli can talk to. It knows nothing of handoffs, but it can stop
and go on: `drain`, and then `serve` again, after `log.read` if somebody else may have written meanwhile."""
import contextlib, selectors, socket, threading, time

import resp
from log import SET, Log

PATIENCE = 1.0  # For how many seconds a client that has connected may keep a drain waiting for its first request.


class Store:
    def __init__(self, directory, listener):
        self.log, self.listener, self.clients = Log(directory), listener, {}
        self.selector, self.serving, self.mutex = selectors.DefaultSelector(), threading.Event(), threading.Lock()

    def address(self):
        return "%s:%d" % self.listener.getsockname()[:2]

    def serve(self):
        """Accepts. The socket is shared with other processes: its flags are left alone, and it is never shut down."""
        self.log.own()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.serving.set()

    def run(self):
        while self.serving.wait():
            self.selector.select()
            with self.mutex:
                if self.serving.is_set():
                    self.turn()

    def drain(self, until):
        """Stops accepting, lets clients have their answers and go, and returns how many have not. Whoever accepts next finds in
        the queue who comes meanwhile. Everything that was answered is on disk."""
        with self.mutex:
            self.serving.clear()
            self.selector.unregister(self.listener)
        while not self.is_drained() and time.monotonic() < until:
            self.selector.select(0.01)
            self.turn()
        return len(self.clients)

    def is_drained(self):
        """Bids clients that have their answers goodbye, and says whether all have left."""
        for client in self.clients.values():
            done = client.answered and not client.buffer or time.monotonic() > client.since + PATIENCE
            if done and not client.leaving:
                client.leaving = True
                with contextlib.suppress(OSError):
                    client.socket.shutdown(socket.SHUT_WR)  # It reads its last answer, then the end, and no reset.
        return not self.clients

    def turn(self):
        """Takes what has arrived, makes all changes last with one sync, and only then answers."""
        answers = []
        for key, _ in self.selector.select(0):
            if key.fileobj is self.listener:
                with contextlib.suppress(OSError):
                    client = resp.Client(self.listener.accept()[0])
                    self.clients[client.socket] = client
                    self.selector.register(client.socket, selectors.EVENT_READ)
            else:
                answers.append((self.clients[key.fileobj], self.hear(self.clients[key.fileobj])))
        self.log.commit()
        for client, answer in answers:
            try:
                client.socket.sendall(answer)
                client.answered |= answer != b""
            except (OSError, TypeError):  # There is no answer for one who has left.
                self.selector.unregister(client.socket)
                self.clients.pop(client.socket).socket.close()

    def hear(self, client):
        """Returns the answers to what a client has sent, and nothing at its end."""
        try:
            data = client.socket.recv(65536)
            client.buffer += b"" if client.leaving else data
            return b"".join([self.execute(*words) for words in client.requests()]) if data else None
        except (OSError, ValueError):
            return None

    def execute(self, name, *words):
        match name.upper(), words:
            case b"PING", ():
                return resp.ok(b"PONG")
            case b"GET", (key,):
                return resp.string(self.log.map.get(key))
            case b"MGET", (_, *_):
                return resp.array([resp.string(self.log.map.get(key)) for key in words])
            case b"SET", (key, value):
                self.log.change(SET, key, value)
                return resp.ok()
            case b"INCR", (key,):
                value = self.log.map.get(key, b"0")
                if value.lstrip(b"-").isdigit() and int(value) < 2**63 - 1:
                    self.log.change(SET, key, b"%d" % (int(value) + 1))
                    return resp.integer(int(value) + 1)
                return resp.error(b"value is not an integer or out of range")
        return resp.error(b"unknown command, or wrong number of arguments")
