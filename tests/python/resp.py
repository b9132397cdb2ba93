"""A small part of Redis's protocol: requests are arrays of strings, each after its length."""
import time


class Client:
    """A connection, what came over it and was not answered yet, and what a drain must know."""

    def __init__(self, connection):
        self.socket, self.buffer, self.since = connection, b"", time.monotonic()
        self.answered = self.leaving = False
        self.socket.settimeout(1)  # Who does not read his answers for so long is dropped.

    def requests(self):
        """Takes the whole requests out of the buffer: `*2 $3 GET $1 k`, with a line end after each of these."""
        while (end := self.buffer.find(b"\r\n")) > 0:
            words, count, at = [], int(self.buffer[1:end]), end + 2
            while len(words) < count and (start := self.buffer.find(b"\r\n", at) + 2) > 1:
                length = int(self.buffer[at + 1 : start - 2])
                words.append(self.buffer[start : start + length])
                at = start + length + 2
            if len(words) < count or len(self.buffer) < at:
                return
            self.buffer = self.buffer[at:]
            yield words


def ok(text=b"OK"):
    return b"+%b\r\n" % text


def error(text):
    return b"-ERR %b\r\n" % text


def integer(number):
    return b":%d\r\n" % number


def string(value):
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def array(values):
    return b"*%d\r\n%b" % (len(values), b"".join(values))
