"""The data directory's lock, and the record in it that says who owns the data: the only authority there is. In words:
ARCHITECTURE.md, "The lock file"."""
import contextlib, fcntl, functools, json, os, re, sys, time

from handoff import PROCESS, PROGRAM

NAME, PAGE, HEADER = ".handoff.lock", 4096, b"handoff lock file, format 1\n"
HEAD = re.compile(rb"owner sequence=(\d{20}) durable=\d{20} length=\d{4} crc32c=([0-9a-f]{8})\n")
TABLE = [functools.reduce(lambda crc, _: crc >> 1 ^ 0x82F63B78 * (crc & 1), range(8), byte) for byte in range(256)]


def crc32c(data):
    """The checksum of RFC 3720, which Python does not come with."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


class Lock:
    def __init__(self, directory, fd=None):
        self.path, self.held = os.path.join(directory, NAME), False
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600) if fd is None else fd

    def take(self):
        """Tries once, without waiting, and says whether this process has it now."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self.fd), os.stat(self.path)):
                sys.exit(f"python: fatal: {self.path} was replaced: somebody else may have a lock of this name")
            self.held = True
        return self.held

    def release(self):
        """By LOCK_UN: a close would leave it with any copy of the descriptor, such as a child's."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        self.held = False

    def slots(self):
        """Returns sequence, place and record of each slot; the sequence is 0 in an empty one, and -1 in a torn one."""
        for place in (PAGE, 2 * PAGE, 3 * PAGE):
            page = os.pread(self.fd, PAGE, place)
            head = HEAD.match(page)
            if head and int(head[2], 16) == crc32c(page.replace(b"crc32c=" + head[2], b"crc32c=00000000", 1)):
                yield int(head[1]), place, json.loads(page[head.end() :].rstrip(b"\0"))
            else:
                yield -1 if any(page) else 0, place, None

    def record(self):
        """Returns the newest record that is intact; before the first, one of generation 0."""
        sequence, _, record = max(self.slots())
        if sequence < 0 or sequence > 0 and os.pread(self.fd, len(HEADER), 0) != HEADER:
            sys.exit(f"python: fatal: {self.path} is damaged, or not of format 1")
        return record or {"generation": 0, "owner": None}

    def write(self):
        """Writes that the data is this process's for good, and returns the generation. Only with the lock held."""
        (_, oldest, _), _, (sequence, _, _) = sorted(self.slots())
        before = self.record()
        previous = before["owner"] and {key: before["owner"][key] for key in PROGRAM}
        if before["owner"] and before["owner"].items() >= PROCESS.items():
            previous = before.get("previous")
        owns = {"generation": before["generation"] + 1, "standing": "final", "owner": {**PROCESS, **PROGRAM}}
        line = json.dumps({**owns, "previous": previous, "written_ms": time.time_ns() // 10**6}).encode() + b"\n"
        head = b"owner sequence=%020d durable=%020d length=%04d crc32c=00000000\n" % (sequence + 1, sequence, len(line))
        page = (head + line).ljust(PAGE, b"\0")
        if len(page) > PAGE:
            sys.exit("python: fatal: the owner record does not fit into its page: the arguments are too long")
        if sequence == 0:
            os.pwrite(self.fd, HEADER.ljust(4 * PAGE, b"\0"), 0)
        os.fsync(self.fd)  # Then whatever is in the file is on disk, and a crash can tear the oldest slot alone.
        os.pwrite(self.fd, page.replace(b"00000000\n", b"%08x\n" % crc32c(page), 1), oldest)
        os.fdatasync(self.fd)
        return owns["generation"]
