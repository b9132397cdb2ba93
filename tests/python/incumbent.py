"""incumbent.py CONTROL DATA_DIR HOST:PORT: serves the counter, and hands it over to the successor that a driver brings.

It leaves out trials (`bake_ms` is refused), to say in a verdict when each phase began, and to kill also what a
successor has started: it kills the process that said `attach`."""
import os, socket, sys, time

from control import ms_since
from handoff import Lost, inherited
from handover import Handover
from lock import Lock

UNDECIDED = ("prepared", "draining", "drained", "sealed", "attached")


class Incumbent(Handover):
    def run(self):
        while True:
            self.turn(60)
            if self.lease:
                self.hand_over()

    def decide(self, peer, kind, message):
        """Takes what may change something. What comes over the lease is for the handoff."""
        if kind == "prepare" and message.get("bake_ms") is not None:
            peer.send("refused", reason="expected no trial: this daemon cannot stand by in one")
        elif kind == "prepare" and not self.lease:
            self.handoff, self.begun = message["handoff"], time.monotonic()
            self.lease, self.said, self.pidfds, self.why = peer, [message], [], None
        elif peer is self.lease:
            self.said.append(message)
            self.pidfds += [os.dup(fd) for fd in message["fds"]]
        elif kind == "prepare":
            peer.send("busy", handoff=self.handoff, phase=self.phase, age_ms=ms_since(self.begun))
        elif kind == "abort" and self.lease and self.phase in UNDECIDED:
            self.why = {"kind": "operator", "detail": message["reason"]}
            peer.send("accepted")
        else:
            peer.send("refused", reason=f"expected prepare, or abort while a handoff can be undone; got {kind}")

    def wait(self, phase, until, *kinds, late="deadline"):
        """Returns the message on the lease that ends a phase; meanwhile everybody is answered. What was said counts
        before a death or an end, and these before the time: who was stopped for a while finds answers first."""
        self.phase = phase
        while not self.said:
            self.turn(until - time.monotonic())
            if not self.said and (self.why or self.lease.closed or time.monotonic() >= until):
                raise Lost(self.why or {"kind": "lease-lost" if self.lease.closed else late})
        message = self.said.pop(0)
        if message["type"] == "abort":
            raise Lost(message.get("cause") or {"kind": "driver", "detail": message["reason"]})
        if message["type"] not in kinds:
            raise ValueError(f"expected {kinds}, got {message['type']}")
        return message


def cold_start(control, directory, address, fds):
    """Starts where nobody serves; also as what a predecessor became, which had the lock and the socket."""
    lock, (host, port) = Lock(directory, fds.get("lock")), address.rsplit(":", 1)
    if not lock.take():
        sys.exit(f"incumbent.py: fatal: unable to lock {lock.path}: another process has it")
    if "listener.tcp" in fds:
        listener = socket.socket(fileno=fds["listener.tcp"])
    else:
        listener = socket.create_server((host, int(port)), backlog=socket.SOMAXCONN)
    open(os.path.join(directory, "count"), "ab").close()
    os.fsync(os.open(directory, os.O_RDONLY))  # So that the files are there after a power failure.
    daemon = Incumbent(control, directory, listener, lock)
    daemon.open()
    daemon.own()
    daemon.run()


if __name__ == "__main__":
    cold_start(*sys.argv[1:], fds=inherited())
