"""The data directory's lock, and the record inside it that says who owns the data: the only authority there is."""
import fcntl, json, os, re, sys, time

from crc32c import crc32c
from peer import BUILD_ID, process


def program():
    """Returns what to run to start this process again."""
    args = [os.fsencode(arg).decode(errors="replace") for arg in sys.orig_argv[1:]]  # Anything else is not JSON.
    return {"binary": os.readlink("/proc/self/exe"), "args": args, "build_id": BUILD_ID}


class Lock:
    NAME, PAGE = ".handoff.lock", 4096
    FORMAT = b"handoff lock file, format 1\n"
    HEAD = re.compile(rb"owner sequence=(\d{20}) durable=(\d{20}) length=(\d{4}) crc32c=([0-9a-f]{8})\n")

    def __init__(self, directory, fd=None):
        self.directory = os.path.realpath(directory)
        self.path = os.path.join(self.directory, self.NAME)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600) if fd is None else fd
        self.held = False

    def take(self):
        """Tries once, without waiting; returns false if somebody else has it."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if os.path.samestat(os.fstat(self.fd), os.stat(self.path)):
            self.held = True
            return True
        self.release()
        raise RuntimeError(f"{self.path} was replaced after it was opened: somebody else may have a lock of this name")

    def is_gone_beyond(self, generation):
        """Says whether the data is for good that of somebody who came later than this generation."""
        record = self.record()
        return record["generation"] > generation and record["standing"] == "final"

    def release(self):
        """Unlocks. Closing would not do: a child that was forked may have a copy of the descriptor."""
        self.held = False
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def slots(self):
        """Returns the sequence and the record of each slot: 0 where nothing was written, -1 where a crash tore it."""
        if not os.pread(self.fd, self.PAGE, 0).startswith(self.FORMAT):
            raise RuntimeError(f"{self.path} is not a lock file of format 1")
        for offset in (self.PAGE, 2 * self.PAGE, 3 * self.PAGE):
            page = os.pread(self.fd, self.PAGE, offset)
            head = self.HEAD.match(page)
            if head and int(head[4], 16) == crc32c(page[: head.start(4)] + b"0" * 8 + page[head.end(4) :]):
                yield int(head[1]), json.loads(page[head.end() : head.end() + int(head[3])]), offset
            else:
                yield -1 if any(page) else 0, None, offset

    def record(self):
        """Returns the newest record, or none before the first."""
        sequence, record, _ = max(self.slots(), key=lambda slot: slot[0])
        if sequence < 0:
            raise RuntimeError(f"{self.path} is damaged: no slot is intact")
        return record

    def create(self):
        """Lays the file out, where nobody has written a record yet. Its size and its blocks never change again."""
        if not any(os.pread(self.fd, 3 * self.PAGE, self.PAGE)):
            os.pwrite(self.fd, self.FORMAT.ljust(4 * self.PAGE, b"\0"), 0)
            os.fsync(self.fd)
            directory = os.open(self.directory, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)

    def write(self, generation):
        """Writes that this process owns the data for good. Only with the lock held; on disk when it returns."""
        slots, before, owner = list(self.slots()), self.record(), {**process(), **program()}
        is_ours = before is not None and process().items() <= before["owner"].items()
        previous = before and (before.get("previous") if is_ours else {key: before["owner"][key] for key in program()})
        newest, (_, _, offset) = max(slot[0] for slot in slots), min(slots, key=lambda slot: slot[0])
        os.fdatasync(self.fd)  # So that what is in the file now is on disk, whoever wrote it: a crash may tear the rest.
        record = {"generation": generation, "standing": "final", "owner": owner, "previous": previous}
        body = json.dumps({**record, "written_ms": time.time_ns() // 10**6}).encode() + b"\n"
        head = b"owner sequence=%020d durable=%020d length=%04d crc32c=" % (newest + 1, newest, len(body))
        rest = b"\n" + body.ljust(self.PAGE - len(head) - 9, b"\0")
        if len(head) + 8 + len(rest) > self.PAGE:
            raise RuntimeError("the owner record does not fit into its page")
        os.pwrite(self.fd, head + b"%08x" % crc32c(head + b"0" * 8 + rest) + rest, offset)
        os.fdatasync(self.fd)
