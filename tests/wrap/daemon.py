"""A daemon that knows nothing of handoff: it counts requests, and keeps the count in a file, synced before each answer.

Arguments: a label, the file, and how it misbehaves.
"""
import os
import select
import signal
import socket
import sys
import threading
import time

label, path, faults = sys.argv[1], sys.argv[2], set(sys.argv[3:])


def say(*words):
    print(label, *words, file=sys.stderr, flush=True)


def is_(fault):
    return fault in faults


if is_("exit-at-once"):
    say("is broken")
    sys.exit(7)
if is_("background"):
    # As daemons did it: twice, with a session of its own in between.
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
if is_("leave-child"):
    if not os.fork():
        # It has the lock, and no way to hear of the end.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        time.sleep(600)
        os._exit(0)
if is_("slow-child"):
    if not os.fork():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while os.getppid() != 1 and not os.path.exists(path + ".go"):
            time.sleep(0.01)
        # The last write of all.
        with open(path + ".late", "w") as late:
            late.write("done")
        os._exit(0)


def sockets():
    count = int(os.environ["LISTEN_FDS"])
    assert int(os.environ["LISTEN_PID"]) == os.getpid() or is_("background")
    return [socket.socket(fileno=3 + i) for i in range(count)]


listeners = sockets()
in_flight = threading.Lock()
stopping = False


def stop(*_):
    global stopping
    stopping = True
    if is_("shutdown"):
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
    if is_("unlink"):
        os.unlink(listeners[0].getsockname())
    if is_("slow-end"):
        while not os.path.exists(path + ".go"):
            time.sleep(0.01)
    with in_flight:
        say("ends")
        os._exit(0)


for name in ("TERM", "QUIT"):
    ignored = is_("ignore-" + name.lower())
    signal.signal(getattr(signal, "SIG" + name), (lambda *_: say("ignores it")) if ignored else stop)
signal.signal(signal.SIGUSR1, lambda *_: say("got USR1"))
signal.signal(signal.SIGHUP, lambda *_: say("got HUP"))


def count():
    try:
        with open(path) as file:
            return int(file.read())
    except FileNotFoundError:
        return 0


def write(value):
    new = f"{path}.{os.getpid()}"
    with open(new, "w") as file:
        file.write(str(value))
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)


def notify(text):
    name = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text.encode(), "\0" + name[1:] if name[0] == "@" else name)


if is_("hang"):
    time.sleep(600)
if is_("nonblock"):
    for listener in listeners:
        listener.setblocking(False)
if is_("notify"):
    notify("STATUS=counting\nREADY=1")
if is_("line"):
    os.write(int(os.environ["READY_FD"]), b"ready\n")
value = count()
say("counts from", value, "as", os.getpid())


def answer(client):
    global value
    try:
        request = client.recv(4096)
    except ConnectionResetError:
        return
    if request.startswith(b"GET /"):
        status = "503 No" if is_("sick") else "200 OK"
        client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    elif request.startswith(b"die"):
        os._exit(int(request.split()[1]))
    elif request.startswith(b"kill"):
        os.kill(os.getpid(), int(request.split()[1]))
    elif request:
        value += 1
        write(value)
        client.sendall(f"{label} {value}\n".encode())


def serve(listener):
    while True:
        select.select([listener], [], [])
        # What was accepted is answered before the end.
        with in_flight:
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError:
                # It was shut down, and the end is near.
                return
            with client:
                client.setblocking(True)
                answer(client)


if is_("die-later"):
    threading.Timer(0.3, lambda: os._exit(9)).start()
for listener in listeners[1:]:
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
threading.Thread(target=serve, args=(listeners[0],), daemon=True).start()
while True:
    signal.pause()
