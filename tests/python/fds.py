"""The table of inherited descriptors: which number is what, and how to find out that it is not."""
import os, re, socket, stat, struct, sys

SO_COOKIE = 57  # socket(7); Python has no name for it.


def identity(fd):
    """Returns what a descriptor leads to, as the table says it."""
    found = os.fstat(fd)
    if stat.S_ISSOCK(found.st_mode):
        with socket.socket(fileno=os.dup(fd)) as copy:
            if copy.family != socket.AF_UNIX:
                return "cookie:%d" % struct.unpack("Q", copy.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))
    return f"inode:{found.st_dev}:{found.st_ino}"


def inherited():
    """Takes the table out of the environment, so that no child adopts it, and returns the descriptors by name."""
    for name in ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID"):
        os.environ.pop(name, None)  # The same sockets, for programs that know nothing else.
    fds = {}
    for name, number, expected in re.findall(r"(\S+?)=(\d+)@(\S+)", os.environ.pop("HANDOFF_FDS", "")):
        if identity(int(number)) != expected:
            sys.exit(f"descriptor {number} should be {name}, {expected}: the number was used again on the way")
        os.set_inheritable(int(number), False)
        fds[name] = int(number)
    return fds


def become(binary, args, fds):
    """Becomes another program, which inherits these descriptors by name and nothing else."""
    for fd in fds.values():
        os.set_inheritable(fd, True)
    table = " ".join(f"{name}={fd}@{identity(fd)}" for name, fd in fds.items())
    os.execve(binary, [binary, *args], {**os.environ, "HANDOFF_FDS": table})
