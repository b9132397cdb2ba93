"""in_place.py CONTROL PROGRAM [ARG...]: a driver that becomes the successor, as the last link of a chain does.

Everything that a driver says is said before, on a channel whose other end is closed when the program starts: hello, offer, begin
with the sealed lease. The gap contains the program's start, and the process keeps its number."""
import os, socket, sys, time

from fds import become
from peer import Peer


def connect(path):
    peer = Peer(socket.socket(socket.AF_UNIX))
    peer.socket.connect(path)
    peer.hello("in_place.py")
    return peer


def ask(peer, kind, expected, until, **fields):
    peer.send(kind, **fields)
    while (answer := peer.wait(until))["type"] == "hello":
        pass
    if answer["type"] != expected:
        sys.exit(f"in_place.py: fatal: expected {expected}, got {answer}")
    return answer


def main(control, program, *args):
    until = time.monotonic() + 30
    lease = connect(control)
    terms = {"handoff": f"in-place-{os.getpid()}", "deadline_ms": 30000, "stand_by_ms": 10000}
    listeners = ask(lease, "listeners", "listener-list", until)
    prepared = ask(lease, "prepare", "prepared", until, **terms)
    ask(lease, "drain", "drained", until, grace_ms=10000)
    sealed = ask(lease, "seal", "sealed", until)
    sealed = {key: sealed[key] for key in ("last_revision_per_shard", "data_dir_fingerprint")}
    channel, successors = socket.socketpair()
    driver = Peer(channel)
    driver.hello("in_place.py")
    whose = {"handoff": terms["handoff"], "generation": prepared["generation"], "incumbent": prepared["incumbent"]}
    driver.send("offer", prepared["fds"], tree="lone", patience_ms=30000, margin_ms=2000, **whose)
    left = int(1000 * (until - time.monotonic()))
    driver.send("begin", [lease.socket.fileno()], sealed=sealed, deadline_ms=left)
    names = [f"listener.{name}" for name in listeners["names"]]
    become(program, args, {**dict(zip(names, listeners["fds"])), "channel": successors.fileno()})


main(*sys.argv[1:])
