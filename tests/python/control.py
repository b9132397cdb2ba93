"""The control socket, where anybody may ask how the daemon is doing, at any time: also in the middle of a handoff."""
import contextlib, os, socket, time

import lock
from counter import Counter
from handoff import HELLO, PROCESS, PROGRAM, Peer


class Control(Counter):
    def __init__(self, path, directory, listener, lock):
        """Binds beside the path: nobody finds this socket before `own`."""
        super().__init__(directory, listener)
        self.path, self.beside, self.lock, self.since = path, f"{path}.{os.getpid()}", lock, time.monotonic()
        self.phase, self.lease, self.watching, self.control = "serving", None, [], socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.beside)  # Of a process that had this number and died before it renamed it.
        self.control.bind(self.beside)
        os.chmod(self.beside, 0o600)  # Nobody can connect before `listen`.
        self.control.listen(socket.SOMAXCONN)

    def own(self):
        """Makes the data this process's own: in the record first, and only then by what it does."""
        self.generation = self.lock.write()
        self.accept()
        self.watch(self.control, self.admit, self.control, self.meet)
        os.rename(self.beside, self.path)

    def meet(self, connection):
        self.watch(connection, self.hear, Peer(connection))

    def hear(self, peer):
        """Takes what a peer says; who says what is none of this protocol is shown the door."""
        try:
            peer.receive()
            while peer.inbox:
                self.take(peer, peer.inbox.pop(0))
        except Exception as error:
            peer.send("refused", reason=f"expected a message of this protocol, got {error!r}")
            peer.closed = True
        if peer.closed:
            self.leave(peer)

    def leave(self, peer):
        self.selector.unregister(peer.socket)
        peer.close()

    def take(self, peer, message):
        """Answers what anybody may ask."""
        kind = message["type"]
        if message["fds"] and kind != "attach":
            raise ValueError(f"descriptors with {kind}")
        if kind == "hello":
            if not message["versions"]["min"] <= 1 <= message["versions"]["max"]:
                raise ValueError(f"versions without 1, the only one here: {message['versions']}")
            peer.send("hello", **HELLO)
        elif kind == "status":
            peer.send("status-report", **self.status())
        elif kind == "listeners":
            peer.send("listener-list", [self.listener.fileno()], names=["tcp"], more=0)
        elif kind == "stdio":
            peer.send("stdio-copies", [1, 2])
        elif kind == "watch":
            self.watching.append(peer)
            peer.send("accepted")
        else:
            self.decide(peer, kind, message)

    def status(self):
        state = {"shard_count": 1, "open_conns": len(self.clients), "last_revision_per_shard": [self.value]}
        listener = {"name": "tcp", "address": self.address()}
        where = {"data_dir": self.directory, "lock_file": lock.NAME, "locked": self.lock.held}
        who = {"role": "incumbent", "phase": self.phase, "generation": self.generation, **PROGRAM, "process": PROCESS}
        now = {"handoff": {"handoff": self.handoff, "age_ms": ms_since(self.begun)}} if self.lease else {}
        return {**who, **where, **now, "state": state, "listeners": [listener], "uptime_ms": ms_since(self.since)}

    def announce(self, outcome, **more):
        """Tells everybody who watches how a handoff ended."""
        for peer in self.watching:
            peer.send("verdict", handoff=self.handoff, outcome=outcome, **more)


def ms_since(start):
    return int(1000 * (time.monotonic() - start))
