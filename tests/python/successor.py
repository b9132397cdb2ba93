"""successor.py CONTROL DATA_DIR HOST:PORT: takes a store over from the daemon that serves it, when a driver such as `handoff swap`
starts it; otherwise it is a cold start, as for a supervisor that starts it again."""
import os, select, signal, socket, sys, time

from control import Control
from fds import inherited
from daemon import LISTENER
from incumbent import cold_start, serve
from lock import Lock
from peer import BUILD_ID, Lost, Peer, process
from store import Store


def main(control, directory, address):
    fds = inherited()
    if "channel" not in fds:
        return cold_start(control, directory, address, fds)
    channel = Peer(socket.socket(fileno=fds["channel"]))
    try:
        take_over(channel, control, directory, fds)
    except (Lost, OSError, RuntimeError) as error:
        reason = error.args[0] if isinstance(error, Lost) else {"kind": "failed", "detail": str(error)}
        channel.send("failed", reason=reason)
        sys.exit(f"successor.py: fatal: unable to take over: {reason}")


def take_over(channel, control, directory, fds):
    # Nobody may be there to read what is sent on the channel: what was said on it before is there all the same.
    channel.hello("successor")
    soon = time.monotonic() + 30
    expect("hello", channel.wait(soon))
    offer = expect("offer", channel.wait(soon))
    (incumbent,), margin = offer["fds"], max(offer.get("margin_ms", 2000), 50) / 1000
    store = Store(directory, socket.socket(fileno=fds[f"listener.{LISTENER}"]))
    store.log.read()  # What is there by now need not be read in the gap: this is the warm-up.
    channel.send("waiting")
    lease = begin = None
    try:
        patience = time.monotonic() + offer["patience_ms"] / 1000 + 3 * margin
        begin = expect("begin", channel.wait(patience, incumbent, dead="incumbent-lost"))
        lease = Peer(socket.socket(fileno=begin["fds"][0]))
        own = os.pidfd_open(os.getpid())
        lease.send("attach", [own], process=process(), tree=offer["tree"], build_id=BUILD_ID)
        os.close(own)
    except Lost:
        if not is_dead(incumbent):  # If it is, nobody else can serve, whatever the driver said: as after any crash.
            raise
    lock = Lock(directory)
    if not lock.take():
        raise Lost({"kind": "lock-held"})
    generation = (lock.record() or {"generation": 0})["generation"]
    if generation != offer["generation"]:
        raise Lost({"kind": "too-late", "expected": offer["generation"], "found": generation})
    store.log.read()
    bound, opened = Control(control), store.log.seal()
    if lease:
        wait_for_grant(lease, begin, opened, store, incumbent, margin)
    generation = serve(bound, store, lock, generation)
    for peer in [lease, channel] if lease else [channel]:
        peer.send("done", serving_us=time.monotonic_ns() // 1000, generation=generation, on_trial=False)


def wait_for_grant(lease, begin, opened, store, incumbent, margin):
    """Says what was opened, and returns when it may be written to."""
    revisions, fingerprint = opened["last_revision_per_shard"], opened["data_dir_fingerprint"]
    found = {"advertised_revision_per_shard": revisions, "data_dir_fingerprint": fingerprint}
    lease.send("ready", listening_on=[store.address()], healthz_ok=True, **found)
    until, word = time.monotonic() + begin["deadline_ms"] / 1000 + margin, {"type": None}
    while word["type"] != "granted":
        try:
            word = lease.wait(until, incumbent, dead="incumbent-lost", closed=None, late="incumbent-silent")
        except Lost as lost:
            if lost.args[0]["kind"] == "incumbent-silent":  # It is hung, and has sealed: its death decides.
                signal.pidfd_send_signal(incumbent, signal.SIGKILL)
                until = time.monotonic() + 3600
            elif opened.items() <= begin["sealed"].items():
                return  # It died with the data sealed: that is a grant.
            else:
                raise
        if word["type"] == "aborted":
            raise Lost(word["reason"])
    if word.get("bake_ms") is not None:
        raise Lost({"kind": "failed", "detail": "this program cannot serve on trial"})


def expect(kind, message):
    if message["type"] == kind:
        return message
    raise Lost(message.get("reason") or {"kind": "protocol", "detail": f"expected {kind}, got {message['type']}"})


def is_dead(pidfd):
    return bool(select.select([pidfd], [], [], 0)[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
