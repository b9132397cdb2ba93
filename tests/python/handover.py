"""One handoff, as the incumbent goes through it: from `prepare` to `done`, or back."""
import contextlib, time

from peer import MALFORMED, Lost, fence


class Handover:
    def __init__(self, daemon, lease, terms):
        self.daemon, self.lease, self.terms, self.id = daemon, lease, terms, terms["handoff"]
        self.since, self.marks, self.attached, self.why = time.monotonic(), [], None, None
        self.enter("prepared")

    def enter(self, phase):
        self.phase = phase
        self.marks.append({"phase": phase, "at_us": time.monotonic_ns() // 1000})

    def progress(self):
        return {"handoff": self.id, "phase": self.phase, "age_ms": int(1000 * (time.monotonic() - self.since))}

    def run(self):
        """Ends the process, or returns when everything is as before: whatever goes wrong, and also when the lease is closed."""
        try:
            self.hand_over()
        except (Lost, *MALFORMED) as error:
            why = error.args[0] if isinstance(error, Lost) else {"kind": "protocol", "detail": repr(error)}
            try:
                self.put_back(self.why or why)
            except MALFORMED as error:
                raise RuntimeError("unable to go back to serving") from error

    def hand_over(self):
        lease, store, message = self.lease, self.daemon.store, self.terms
        while message["type"] == "prepare":  # It comes again when the successor is warm, and the clock starts anew.
            until, stand_by = time.monotonic() + message["deadline_ms"] / 1000, message["stand_by_ms"] / 1000
            self.daemon.prepared(lease)
            message = self.expect("prepare", "drain", until=until)
        self.enter("draining")
        stopped = {"stopped_us": self.marks[-1]["at_us"], "conns": len(store.clients)}
        left = store.drain(min(until, time.monotonic() + message["grace_ms"] / 1000))
        self.enter("drained")
        lease.send("drained", open_conns_remaining=left, accept_closed=True, **stopped)
        self.expect("seal", until=until)
        sealed = store.log.seal()
        self.daemon.lock.release()
        self.enter("sealed")
        lease.send("sealed", **sealed)
        self.attached = self.expect("attach", until=until)
        self.enter("attached")
        (pidfd,) = self.attached["fds"]
        self.daemon.compare(sealed, self.expect("ready", until=until, pidfd=pidfd))
        self.enter("standing-by")
        lease.send("granted")
        done = self.expect("done", until=time.monotonic() + stand_by, pidfd=pidfd, late="successor-hung")
        self.daemon.end("committed", served={key: done[key] for key in ("serving_us", "generation", "on_trial")})

    def expect(self, *kinds, **limits):
        """Waits for one of these on the lease."""
        while self.daemon.control.answer(self.lease, message := self.lease.wait(**limits), self.daemon):
            pass  # It was a question that anybody may ask.
        if message["type"] in kinds:
            return message
        raise Lost(message.get("cause") or {"kind": "protocol", "detail": f"expected {kinds}, got {message['type']}"})

    def put_back(self, reason):
        """Goes back to serving, with the lock: unless the record in it says that the data is the successor's by now."""
        daemon, lock, was_serving = self.daemon, self.daemon.lock, self.phase == "prepared"
        if not lock.held:
            self.lease.send("aborted", reason=reason)  # One that was granted does not care.
            self.enter("locking")
            self.fence()
            while not (taken := lock.take()) and not lock.is_gone_beyond(daemon.generation):
                time.sleep(0.01)
                self.fence()
            if lock.is_gone_beyond(daemon.generation):
                daemon.superseded(taken)
            daemon.generation = max(daemon.generation, lock.record()["generation"]) + 1
            lock.write(daemon.generation)  # So that a successor which comes too late finds that out.
        if not was_serving:
            self.enter("resuming")
            daemon.store.log.read()
            daemon.store.serve()
        self.lease.send("aborted", reason=reason)
        daemon.announce("rolled-back", reason=reason)

    def fence(self):
        """Kills the successor that has said who it is, also one that comes only now."""
        with contextlib.suppress(*MALFORMED):
            self.lease.receive()
        for message in [self.attached, *self.lease.inbox]:
            if message and message["type"] == "attach":
                fence(message)
