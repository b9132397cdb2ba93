"""successor.py CONTROL DATA_DIR HOST:PORT: takes the counter over from the incumbent when a driver, such as `handoff
swap`, starts it, and is the incumbent from then on. Without a driver it is a cold start, as for a supervisor."""
import contextlib, math, os, select, signal, socket, sys, time

from handoff import HELLO, PIDFD, PROCESS, PROGRAM, Lost, Peer, inherited
from incumbent import Incumbent, cold_start
from lock import Lock


def main(control, directory, address):
    fds = inherited()
    if "channel" not in fds:
        return cold_start(control, directory, address, fds)
    channel, lock = Peer(socket.socket(fileno=fds["channel"])), Lock(directory)
    daemon = Incumbent(control, directory, socket.socket(fileno=fds["listener.tcp"]), lock)
    try:
        take_over(channel, daemon)
    except (Lost, OSError, KeyError, TypeError, ValueError) as error:
        reason = error.args[0] if isinstance(error, Lost) else {"kind": "failed", "detail": repr(error)}
        channel.send("failed", reason=reason)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(daemon.beside)
        sys.exit(f"successor.py: fatal: unable to take over: {reason}")
    daemon.run()


def take_over(channel, daemon):
    # Nobody may be there to read what is sent on the channel: what was said on it before is there all the same.
    channel.send("hello", **HELLO)
    soon = time.monotonic() + 30
    expect("hello", wait(channel, soon))
    offer = expect("offer", wait(channel, soon))
    (incumbent,), margin = offer["fds"], offer.get("margin_ms", 2000) / 1000
    channel.send("waiting")  # Here is the time for whatever takes long and does not touch the data.
    lease = begin = None
    try:
        begin = expect("begin", wait(channel, time.monotonic() + offer["patience_ms"] / 1000 + 3 * margin, incumbent))
        lease = Peer(socket.socket(fileno=begin["fds"][0]))
        lease.send("attach", [PIDFD], process=PROCESS, tree=offer["tree"], build_id=PROGRAM["build_id"])
    except Lost:
        if not select.select([incumbent], [], [], 0)[0]:
            raise
        # It is dead, so nobody else can serve, whatever the driver said: as after any crash.
    if not daemon.lock.take():
        raise Lost({"kind": "lock-held"})
    found = daemon.lock.record()["generation"]
    if found != offer["generation"]:
        raise Lost({"kind": "too-late", "expected": offer["generation"], "found": found})
    daemon.open()
    if lease:
        wait_for_grant(lease, begin, daemon, incumbent, margin)
    daemon.own()
    for peer in [lease, channel] if lease else [channel]:
        peer.send("done", serving_us=time.monotonic_ns() // 1000, generation=daemon.generation, on_trial=False)


def wait_for_grant(lease, begin, daemon, incumbent, margin):
    """Says what was opened, and returns when it may be written to."""
    sealed, fingerprint = begin["sealed"], "0" * 64  # Of a byte for each increment, the count says all.
    opened = {"advertised_revision_per_shard": [daemon.value], "data_dir_fingerprint": fingerprint}
    lease.send("ready", listening_on=[daemon.address()], healthz_ok=True, **opened)
    until = time.monotonic() + begin["deadline_ms"] / 1000 + margin
    while (word := wait(lease, until, incumbent, closed=None))["type"] != "granted":
        if word["type"] == "aborted":
            raise Lost(word["reason"])
        if word["type"] == "incumbent-lost" and sealed["last_revision_per_shard"] in ([], [daemon.value]):
            return  # It died with the data sealed: that is a grant.
        if word["type"] == "incumbent-lost":
            raise Lost({"kind": "unhealthy"})
        if word["type"] == "deadline":  # It has sealed and is hung: its death decides.
            signal.pidfd_send_signal(incumbent, signal.SIGKILL)
            until = math.inf
    if word.get("bake_ms") is not None:
        raise Lost({"kind": "failed", "detail": "this program cannot serve on trial"})


def wait(peer, until, incumbent=None, closed="lease-lost"):
    """Returns the next message. What was said counts before the incumbent's death or an end, these before the time."""
    while not peer.inbox:
        left, poll = until - time.monotonic(), select.poll()
        for source in [peer.socket] * (not peer.closed) + [incumbent] * (incumbent is not None):
            poll.register(source, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(1000 * max(0, min(left, 60)))]
        peer.receive()
        over = "incumbent-lost" if incumbent in ready else peer.closed and closed or left <= 0 and "deadline"
        if over and not peer.inbox:
            return {"type": over}
    return peer.inbox.pop(0)


def expect(kind, message):
    if message["type"] == kind:
        return message
    raise Lost(message.get("reason") or {"kind": message["type"]})


if __name__ == "__main__":
    main(*sys.argv[1:])
