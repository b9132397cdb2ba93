"""How the parties of a handoff speak: a JSON object a line, with descriptors."""
import array, contextlib, json, os, select, signal, socket, time

BUILD_ID = b"python".hex()  # What a program was built from: a version will do, or a hash of its sources.


def process():
    """Returns what names this process for good."""
    fields = open("/proc/self/stat").read().rpartition(")")[2].split()  # The name that is cut off may have spaces.
    boot_id = open("/proc/sys/kernel/random/boot_id").read().strip()
    return {"pid": os.getpid(), "start_ticks": int(fields[19]), "boot_id": boot_id}


MALFORMED = (AttributeError, KeyError, TypeError, ValueError)  # What comes of a message that is none of this protocol.


class Lost(Exception):
    """There is nothing more to wait for; `args[0]` is why, as the wire has it."""


class Peer:
    """One end of a connection: a JSON object a line, and with a line the descriptors that belong to it."""

    def __init__(self, connection):
        self.socket, self.text, self.fds, self.inbox, self.received = connection, b"", [], [], []
        self.closed = self.watches = False

    def send(self, type, fds=(), **fields):
        """Sends a message. A peer that is gone is nothing to act on: what it said before is still there to be read, and then its
        end is seen. One that does not read what it is sent is given up."""
        line = json.dumps({"type": type, **fields}).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError):
            try:
                whole = self.socket.sendmsg([line], rights, socket.MSG_DONTWAIT) == len(line)
            except BlockingIOError:
                whole = False
            if not whole:
                self.socket.shutdown(socket.SHUT_RDWR)

    def close(self):
        """Closes it, and every descriptor that came over it."""
        self.socket.close()
        for fd in self.received:
            os.close(fd)

    def hello(self, actor):
        self.send("hello", versions={"min": 1, "max": 1}, actor=actor, process=process(), build_id=BUILD_ID)

    def receive(self):
        """Puts what has arrived into the inbox, each message with its descriptors as `fds`."""
        while not self.closed:
            flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            try:
                data, rights, flags, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(253 * 4), flags)
            except BlockingIOError:
                return
            except OSError:  # This is how a close looks where something was left unread.
                data, rights, flags = b"", [], 0
            # A receive ends with the piece that descriptors came with: they belong to the line that its last byte is in.
            fds = [fd for _, _, numbers in rights for fd in array.array("i", numbers)]
            self.received += fds
            *lines, self.text = (self.text + data).split(b"\n")
            for line in lines:
                self.inbox.append({**json.loads(line), "fds": self.fds})
                self.fds = []
            (self.inbox[-1]["fds"] if lines and not self.text else self.fds).extend(fds)
            self.closed = not data or flags & socket.MSG_CTRUNC != 0 or len(self.text) > 1 << 20

    def wait(self, until, pidfd=None, late="deadline", dead="successor-lost", closed="lease-lost"):
        """Returns the next message. A death counts only when everything that was said before it has been read, and so does the
        end of the time: a process that was stopped for a while finds its answers before it finds that they are late."""
        while not self.inbox:
            left, poll = until - time.monotonic(), select.poll()
            for fd in [pidfd] * (pidfd is not None) + [self.socket] * (not self.closed):
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(1000 * max(0, min(left, 3600)))]
            self.receive()
            why = dead if pidfd in ready else closed if self.closed and closed else late if left <= 0 else None
            if why and not self.inbox:
                raise Lost({"kind": why})
        return self.inbox.pop(0)


def fence(attached):
    """Kills who has said `attach`, and the session that was made for it."""
    for pidfd in attached["fds"]:
        with contextlib.suppress(OSError, *MALFORMED):
            signal.pidfd_send_signal(pidfd, 0)  # While it is there, neither its number nor its session's is used again.
            session = attached["tree"]["session"]["sid"]
            if os.getsid(attached["process"]["pid"]) == session:
                os.killpg(session, signal.SIGKILL)
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
