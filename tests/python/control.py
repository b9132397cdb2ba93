"""The control socket, where anybody may ask how the daemon is doing, and a driver begins a handoff."""
import atexit, contextlib, math, os, socket, threading, time

from peer import MALFORMED, Lost, Peer


class Control:
    def __init__(self, path):
        """Binds beside the path: nobody finds this socket before `put_in_place`."""
        self.path, self.beside, self.peers = path, f"{path}.{os.getpid()}", []
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.beside)  # Of a process with this number that died between here and `put_in_place`.
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(self.beside)
        os.chmod(self.beside, 0o600)  # Nobody can connect before `listen`.
        self.socket.listen(socket.SOMAXCONN)
        atexit.register(lambda: os.path.exists(self.beside) and os.unlink(self.beside))

    def put_in_place(self):
        """Takes the path over; who is in the queue of the socket that was there is answered, or turned away, by its process."""
        os.rename(self.beside, self.path)

    def run(self, daemon):
        """Answers, with a thread for each connection; the daemon has `status`, `listeners`, and `hear` for everything else."""
        while True:
            try:
                peer = Peer(self.socket.accept()[0])
            except OSError:  # There is no descriptor left: those who wait are answered later.
                time.sleep(0.05)
                continue
            self.peers.append(peer)
            threading.Thread(target=self.converse, args=(peer, daemon)).start()

    def converse(self, peer, daemon):
        try:
            while True:
                message = peer.wait(math.inf)
                if not self.answer(peer, message, daemon):
                    daemon.hear(peer, message)
        except Lost:
            pass
        except MALFORMED as error:
            peer.send("refused", reason=f"expected a message of this protocol: {error!r}")
        self.peers.remove(peer)
        peer.close()

    def answer(self, peer, message, daemon):
        """Answers what anybody may ask at any time; returns whether that was it."""
        kind = message["type"]
        if message["fds"] and kind != "attach":
            raise ValueError(f"{kind} came with descriptors")
        if kind == "hello":
            if not message["versions"]["min"] <= 1 <= message["versions"]["max"]:
                raise ValueError("there is no version in common with 1 to 1")
            peer.hello("incumbent")
        elif kind == "status":
            peer.send("status-report", **daemon.status())
        elif kind == "listeners":
            listeners = daemon.listeners()
            peer.send("listener-list", fds=listeners.values(), names=[*listeners], more=0)
        elif kind == "stdio":
            peer.send("stdio-copies", fds=[1, 2])
        elif kind == "watch":
            peer.watches = True
            peer.send("accepted")
        return kind in ("hello", "status", "listeners", "stdio", "watch")

    def announce(self, **verdict):
        """Tells everybody who watches how a handoff ended."""
        for peer in list(self.peers):
            if peer.watches:
                peer.send("verdict", **verdict)
