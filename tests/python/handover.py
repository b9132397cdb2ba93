"""One handoff, as the incumbent goes through it: from `prepare` to `done`, or back."""
import contextlib, math, os, signal, sys, time

import lock
from control import Control
from handoff import PIDFD, PROCESS, Lost, become


class Handover(Control):
    def hand_over(self):
        """Ends the process, or returns when everything is as before."""
        try:
            self.give_away()
        except (Lost, ArithmeticError, KeyError, TypeError, ValueError) as error:
            self.put_back(error.args[0] if isinstance(error, Lost) else {"kind": "protocol", "detail": repr(error)})
        for pidfd in self.pidfds:
            if pidfd in self.selector.get_map():
                self.selector.unregister(pidfd)
            os.close(pidfd)
        if not self.lease.closed:
            self.leave(self.lease)
        self.lease, self.phase = None, "serving"

    def give_away(self):
        message = self.wait("prepared", math.inf, "prepare")
        while message["type"] == "prepare":  # It comes again when the successor is warm: the clock starts anew.
            until, stand_by = time.monotonic() + message["deadline_ms"] / 1000, message["stand_by_ms"] / 1000
            place = {"data_dir": self.directory, "lock_file": lock.NAME}
            self.lease.send("prepared", [PIDFD], generation=self.generation, incumbent=PROCESS, **place)
            message = self.wait("prepared", until, "prepare", "drain")
        grace = min(until, time.monotonic() + message["grace_ms"] / 1000)
        self.phase, begun = "draining", {"stopped_us": time.monotonic_ns() // 1000, "conns": len(self.clients)}
        left = self.drain(grace)
        self.lease.send("drained", open_conns_remaining=left, accept_closed=True, **begun)
        self.wait("drained", until, "seal")
        self.lock.release()  # What was answered is on disk, and nobody is left to be answered.
        sealed, fingerprint = [self.value], "0" * 64
        self.lease.send("sealed", last_revision_per_shard=sealed, data_dir_fingerprint=fingerprint)
        if self.wait("sealed", until, "attach", "retire")["type"] == "retire":
            self.end("retired")
        (pidfd,) = self.pidfds
        try:
            self.watch(pidfd, self.lose, pidfd)
        except OSError as error:
            raise ValueError("attach came with what is no pidfd") from error
        ready = self.wait("attached", until, "ready")
        opened = ready["advertised_revision_per_shard"]
        if opened != sealed or ready["data_dir_fingerprint"] != fingerprint:
            raise Lost({"kind": "stale-revision", "sealed": sealed, "opened": opened})
        if self.why or not ready["healthz_ok"]:
            raise Lost(self.why or {"kind": "unhealthy"})
        self.lease.send("granted")
        done = self.wait("standing-by", time.monotonic() + stand_by, "done", late="successor-hung")
        self.end("committed", served=done)

    def lose(self, pidfd):
        self.selector.unregister(pidfd)
        self.why = self.why or {"kind": "successor-lost"}

    def end(self, outcome, **more):
        self.announce(outcome, **more)
        sys.exit(0)

    def put_back(self, reason):
        """Goes back to serving, with the lock: unless the record in it says that the data is the successor's by now."""
        was_serving = self.phase == "prepared"
        if not self.lock.held:
            self.lease.send("aborted", reason=reason)  # One that was granted does not care.
            self.phase = "locking"
            self.fence()
            while not (taken := self.lock.take()) and not self.is_overtaken():
                self.turn(0.01)
                self.fence()
            if self.is_overtaken():
                self.superseded(taken)
            self.generation = self.lock.write()  # A successor that comes too late finds it out by this.
        if not was_serving:
            self.open()
            self.accept()
        self.lease.send("aborted", reason=reason)
        self.announce("rolled-back", reason=reason)

    def fence(self):
        """Kills the successor that has said who it is, also one that says so only now."""
        for pidfd in self.pidfds:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def is_overtaken(self):
        record = self.lock.record()
        return record["standing"] == "final" and record["generation"] > self.generation

    def superseded(self, taken):
        """Becomes the program of the successor, which made the data its own and died. Whoever has the lock serves."""
        self.announce("superseded")
        if taken:
            become(self.lock.record()["owner"], {"listener.tcp": self.listener.fileno(), "lock": self.lock.fd})
        sys.exit(0)
