"""The data: a map, and the log of `handoff kvd` that holds every change of it (src/bin/handoff/kvd/log.rs, store.rs)."""
import os, struct

from crc32c import crc32c

SET, DEL, FLUSH, BASE = 1, 2, 3, 4
FIELDS = {SET: 2, DEL: 1, FLUSH: 0, BASE: 1}


class Log:
    def __init__(self, directory):
        self.directory, self.path, self.file, self.pending = directory, os.path.join(directory, "kv.log"), None, b""

    def create(self):
        """Makes the log of an empty directory. It is on disk before it has its name."""
        if not os.path.exists(self.path):
            header, beside = struct.pack("<8sII16s", b"HKVDLOG\n", 1, 1, os.urandom(16)), self.path + ".new-0"
            with open(beside, "wb") as file:
                file.write(header + struct.pack("<I", crc32c(header)))
                file.flush()
                os.fsync(file.fileno())
            os.rename(beside, self.path)
            directory = os.open(self.directory, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)

    def read(self):
        """Reads what was added since the last time, or everything where a compaction gave another file its name. Changes
        nothing: a successor does it while the incumbent still writes, and again when that has sealed."""
        file, old = os.open(self.path, os.O_RDWR), self.file
        self.file = file
        if old is None or not os.path.samestat(os.fstat(file), os.fstat(old)):
            header = os.pread(file, 36, 0)
            magic, version, shards, self.id, check = struct.unpack("<8sII16sI", header)
            if (magic, version, check) != (b"HKVDLOG\n", 1, crc32c(header[:32])):
                raise RuntimeError(f"{self.path} is not a log of kvd, or its header is damaged")
            self.map, self.revisions, self.length, self.chain = {}, [0] * shards, len(header), crc32c(header)
        if old is not None:
            os.close(old)
        while self.read_commit():
            pass

    def read_commit(self):
        """Reads one commit; returns false at the end, which may be incomplete: that was never acknowledged."""
        head = os.pread(self.file, 12, self.length)
        if len(head) < 12:
            return False
        length, chain, check = struct.unpack("<III", head)
        intact = check == crc32c(head[:8], crc32c(struct.pack("<I", self.chain)))
        payload = os.pread(self.file, length if intact else os.fstat(self.file).st_size, self.length + 12)
        if len(payload) < length if intact else not any(head + payload):
            return False
        if not intact or chain != crc32c(payload, self.chain):
            raise RuntimeError(f"{self.path} is damaged at byte {self.length}")
        self.apply(payload)
        self.length, self.chain = self.length + 12 + length, chain
        return True

    def apply(self, payload):
        """Makes the changes in a payload: a byte for what it is, and fields, each after its length."""
        at = 0
        while at < len(payload):
            kind, fields, at = payload[at], [], at + 1
            for _ in range(FIELDS[kind]):
                end = at + 4 + int.from_bytes(payload[at : at + 4], "little")
                fields, at = [*fields, payload[at + 4 : end]], end
            if kind == BASE:  # At the end of a compacted log.
                self.revisions = list(struct.unpack(f"<{len(self.revisions)}Q", fields[0]))
            elif kind == FLUSH:
                self.map, self.revisions = {}, [revision + 1 for revision in self.revisions]
            else:
                self.map.update([fields]) if kind == SET else self.map.pop(fields[0], None)
                self.revisions[crc32c(fields[0]) % len(self.revisions)] += 1

    def change(self, kind, *fields):
        """Makes a change in memory; `commit` makes it last."""
        record = bytes([kind]) + b"".join(struct.pack("<I", len(field)) + field for field in fields)
        self.apply(record)
        self.pending += record

    def commit(self):
        """Puts all changes so far on disk. After an error what is there is known only by reading it again: exit."""
        if self.pending:
            head = struct.pack("<II", len(self.pending), crc32c(self.pending, self.chain))
            frame = head + struct.pack("<I", crc32c(head, crc32c(struct.pack("<I", self.chain)))) + self.pending
            if os.pwrite(self.file, frame, self.length) < len(frame):
                raise RuntimeError(f"{self.path}: the disk is full")
            os.fdatasync(self.file)
            self.length, self.chain, self.pending = self.length + len(frame), crc32c(self.pending, self.chain), b""

    def own(self):
        """Cuts an incomplete end off, and syncs what a crash may have left in memory: from here on it is ours to write."""
        os.ftruncate(self.file, self.length)
        os.fdatasync(self.file)

    def seal(self):
        """Returns what stands for all that is in the file, by which a successor knows that it has opened the same."""
        fingerprint = self.id + struct.pack("<QII", self.length, self.chain, 1)
        return {"last_revision_per_shard": list(self.revisions), "data_dir_fingerprint": fingerprint.hex()}
