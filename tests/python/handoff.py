"""How the parties of a handoff speak: lines of JSON with descriptors over a socket; and the table of inherited
descriptors. In words: ARCHITECTURE.md, "The wire"."""
import array, contextlib, json, os, re, socket, stat, sys

words = [os.fsencode(word).decode(errors="replace") for word in (os.readlink("/proc/self/exe"), *sys.orig_argv[1:])]
PROGRAM = {"binary": words[0], "args": words[1:], "build_id": b"python".hex()}
ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])  # Behind the name, which may have spaces.
BOOT_ID = open("/proc/sys/kernel/random/boot_id").read().strip()
PROCESS = {"pid": os.getpid(), "start_ticks": ticks, "boot_id": BOOT_ID}
PIDFD = os.pidfd_open(os.getpid())
HELLO = {"versions": {"min": 1, "max": 1}, "actor": "python", "process": PROCESS, "build_id": PROGRAM["build_id"]}
SO_COOKIE = 57  # socket(7); Python has no name for it.


class Lost(Exception):
    """A handoff comes to nothing; `args[0]` is the reason, as the wire has it."""


class Peer:
    """One end of a connection: a JSON object a line, and with a line the descriptors that belong to it."""

    def __init__(self, connection):
        self.socket, self.closed, self.text, self.fds, self.inbox, self.received = connection, False, b"", [], [], []

    def send(self, type, fds=(), **fields):
        """Never waits and never fails: what a peer said before it went is still to be read, then its end is seen."""
        line = json.dumps({"type": type, **fields}).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        with contextlib.suppress(OSError):
            self.socket.sendmsg([line], rights, socket.MSG_DONTWAIT)

    def receive(self):
        """Puts what has arrived into the inbox, each message with its descriptors as `fds`."""
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            data, rights, flags, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(4 * 253), flags)
        except BlockingIOError:
            return
        except OSError:  # So ends a connection on which something was left unread.
            data, rights, flags = b"", [], 0
        fds = [fd for _, _, numbers in rights for fd in array.array("i", numbers)]
        self.received += fds
        *lines, self.text = (self.text + data).split(b"\n")
        for line in lines:
            self.inbox.append({**json.loads(line), "fds": self.fds})
            self.fds = []
        # A receive ends with the piece that descriptors came with: they belong to the line that its last byte is in.
        (self.inbox[-1]["fds"] if lines and not self.text else self.fds).extend(fds)
        self.closed = not data
        if flags & socket.MSG_CTRUNC or len(self.text) > 1 << 20:
            raise ValueError("more than fits")

    def close(self):
        self.socket.close()
        for fd in self.received:
            os.close(fd)


def identity(fd):
    """Returns what a descriptor leads to, as the table says it."""
    try:
        found = os.fstat(fd)
    except OSError:
        return "closed"
    if stat.S_ISSOCK(found.st_mode):
        with socket.socket(fileno=os.dup(fd)) as copy:
            if copy.family != socket.AF_UNIX:
                return f"cookie:{int.from_bytes(copy.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)}"
    return f"inode:{found.st_dev}:{found.st_ino}"


def inherited():
    """Takes the table out of the environment, so that no child adopts it, and returns the descriptors by name."""
    for name in ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID"):
        os.environ.pop(name, None)  # The same sockets, for programs that know nothing else.
    fds = {}
    for name, number, expected in re.findall(r"(\S+?)=(\d+)@(\S+)", os.environ.pop("HANDOFF_FDS", "")):
        if (found := identity(int(number))) != expected:
            sys.exit(f"python: fatal: descriptor {number} should be {name}, {expected}, and is {found}")
        os.set_inheritable(int(number), False)
        fds[name] = int(number)
    return fds


def become(program, fds):
    """Becomes another program, which inherits these descriptors by name, and nothing else."""
    for fd in fds.values():
        os.set_inheritable(fd, True)
    table = " ".join(f"{name}={fd}@{identity(fd)}" for name, fd in fds.items())
    os.execve(program["binary"], [program["binary"], *program["args"]], {**os.environ, "HANDOFF_FDS": table})
