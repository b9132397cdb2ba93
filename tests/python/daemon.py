"""What a daemon is to those who come to its control socket, and where a handoff ends."""
import contextlib, os, socket, threading, time

from fds import become
from handover import Handover
from lock import program
from peer import Lost, process

LISTENER = "resp"  # What the listening socket is called: here as kvd calls it.
UNDECIDED = ("prepared", "draining", "drained", "sealed", "attached")


class Daemon:
    def __init__(self, control, store, lock, generation):
        self.control, self.store, self.lock, self.generation = control, store, lock, generation
        self.handover, self.since, self.one_at_a_time = None, time.monotonic(), threading.Lock()

    def hear(self, peer, message):
        """Takes what may change something."""
        kind, handover = message["type"], self.handover
        if kind == "prepare" and message.get("bake_ms") is not None:
            peer.send("refused", reason="expected no trial: this daemon cannot stand by in one")
        elif kind == "prepare" and self.one_at_a_time.acquire(blocking=False):
            try:
                self.handover = Handover(self, peer, message)
                self.handover.run()
            finally:
                self.handover = None
                self.one_at_a_time.release()
            raise Lost({"kind": "lease-lost"})  # The lease ends with the handoff.
        elif kind == "prepare":
            peer.send("busy", **(handover.progress() if handover else {"handoff": "", "phase": "serving", "age_ms": 0}))
        elif kind == "abort" and handover and handover.phase in UNDECIDED:
            handover.why = {"kind": "operator", "detail": message["reason"]}
            with contextlib.suppress(OSError):  # It may have ended just now.
                handover.lease.socket.shutdown(socket.SHUT_RD)  # It goes on as if its driver were gone.
            peer.send("accepted")
        else:
            peer.send("refused", reason=f"expected prepare, or a handoff that can still be undone; got {kind}")

    def status(self):
        handover, revisions, clients = self.handover, self.store.log.revisions, len(self.store.clients)
        return {
            "role": "incumbent",
            "phase": handover.phase if handover else "serving",
            "process": process(),
            "build_id": program()["build_id"],
            "binary": program()["binary"],
            "generation": self.generation,
            "data_dir": self.lock.directory,
            "lock_file": self.lock.NAME,
            "locked": self.lock.held,
            "state": {"shard_count": len(revisions), "open_conns": clients, "last_revision_per_shard": revisions},
            "listeners": [{"name": LISTENER, "address": self.store.address()}],
            "uptime_ms": int(1000 * (time.monotonic() - self.since)),
            **({"handoff": handover.progress()} if handover else {}),
        }

    def prepared(self, lease):
        """Answers whom the lease was given to."""
        own, place = os.pidfd_open(os.getpid()), {"data_dir": self.lock.directory, "lock_file": self.lock.NAME}
        lease.send("prepared", [own], generation=self.generation, incumbent=process(), **place)
        os.close(own)

    def listeners(self):
        return {LISTENER: self.store.listener.fileno()}

    def compare(self, sealed, ready):
        """Refuses a successor that is not well, or has opened anything but what was sealed."""
        revisions, opened = sealed["last_revision_per_shard"], ready["advertised_revision_per_shard"]
        if not ready["healthz_ok"]:
            raise Lost({"kind": "unhealthy"})
        if opened != revisions:
            raise Lost({"kind": "stale-revision", "sealed": revisions, "opened": opened})
        if ready["data_dir_fingerprint"] != sealed["data_dir_fingerprint"]:
            raise Lost({"kind": "fingerprint"})

    def announce(self, outcome, **more):
        """Tells everybody who watches how the handoff ended."""
        self.control.announce(handoff=self.handover.id, phases=self.handover.marks, outcome=outcome, **more)

    def end(self, outcome, **more):
        self.announce(outcome, **more)
        os._exit(0)

    def superseded(self, has_lock):
        """Becomes the program of the successor, which made the data its own and died: as a cold start, in this process. Where
        somebody else has the lock by now, he serves."""
        self.announce("superseded")
        if not has_lock:
            os._exit(0)
        owner = self.lock.record()["owner"]
        become(owner["binary"], owner["args"], {f"listener.{LISTENER}": self.store.listener.fileno(), "lock": self.lock.fd})
