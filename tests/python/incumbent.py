"""incumbent.py CONTROL DATA_DIR HOST:PORT: serves a store, and hands it over to the successor that a driver brings."""
import os, signal, socket, sys, threading, traceback

from control import Control
from daemon import LISTENER, Daemon
from fds import inherited
from lock import Lock
from store import Store


def cold_start(control, directory, address, fds):
    """Starts where nobody serves; where a predecessor became this program, with its lock and its socket."""
    os.makedirs(directory, exist_ok=True)
    lock, (host, port) = Lock(directory, fds.get("lock")), address.rsplit(":", 1)
    if not lock.take():
        sys.exit(f"incumbent.py: fatal: unable to lock {lock.path}: another process has it")
    lock.create()
    if f"listener.{LISTENER}" in fds:
        listener = socket.socket(fileno=fds[f"listener.{LISTENER}"])
    else:
        listener = socket.create_server((host, int(port)), backlog=socket.SOMAXCONN)
    store = Store(directory, listener)
    store.log.create()
    store.log.read()
    serve(Control(control), store, lock, (lock.record() or {"generation": 0})["generation"])


def serve(control, store, lock, generation):
    """Makes the data this process's own, after this generation, and answers clients and drivers on threads of their own. Returns
    the new generation when everybody finds the way here. A thread that fails ends the process: what is on disk is whole."""
    threading.excepthook = lambda failed: (traceback.print_exception(failed.exc_value), os._exit(111))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # It ends the process as SIGTERM does: everything that was answered is on disk.
    lock.write(generation + 1)
    store.serve()
    threading.Thread(target=store.run).start()
    control.put_in_place()
    threading.Thread(target=control.run, args=(Daemon(control, store, lock, generation + 1),)).start()
    print(f"python: info: serves on {store.address()}", file=sys.stderr, flush=True)
    return generation + 1


if __name__ == "__main__":
    cold_start(*sys.argv[1:], fds=inherited())
