"""What a disk still holds after a power cut, told from the journal of file calls that faults.c keeps; and which
checkpoints are in what it holds.

POSIX's promise and no more: a file's content is safe as of the file's last fsync, the names in a folder (creations,
renames, removals) as of the folder's. What is not safe may be lost or not, each part of it by itself.
"""

import hashlib
import json
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CALLS = ("open", "write", "truncate", "sync", "close", "rename", "unlink", "make_folder")  # enum Call of faults.c
RECORD = struct.Struct("<iiqqiiii")  # struct Record of faults.c


@dataclass
class Call:
    kind: str
    rank: int
    result: int
    place: int  # a write's offset, a file's new length, whether open cuts to nothing
    path: str
    other: str  # the new name
    data: bytes


def read_journal(path):
    """-> Calls, in their order"""
    journal, at, calls = Path(path).read_bytes(), 0, []
    while at + RECORD.size <= len(journal):
        kind, rank, result, place, *lengths, _ = RECORD.unpack_from(journal, at)
        at += RECORD.size
        parts = []
        for length in lengths:
            parts.append(journal[at : at + length])
            at += length
        calls.append(Call(CALLS[kind], rank, result, place, parts[0].decode(), parts[1].decode(), parts[2]))
    return calls


def numbered(calls, folder, rank):
    """-> [(N, call)] of that rank and folder: N counts the calls of a kind, as LATERNA_FAULT=KIND:N does"""
    counts, folder, found = Counter(), str(folder), []
    for call in calls:
        if call.rank == rank and (call.path == folder or call.path.startswith(folder + "/")):
            counts[call.kind] += 1
            found.append((counts[call.kind], call))
    return found


class Node:
    """A file (bytes) or a folder ({name: Node}): as it is, and as much of it as is safe."""

    def __init__(self, content):
        self.now, self.safe = content, type(content)()

    def sync(self):
        self.safe = type(self.now)(self.now)


class Disk:
    """The content of `folder`, empty at first, as calls change it."""

    def __init__(self, folder):
        self._folder = str(folder)
        self._root = Node({})

    def apply(self, call):
        if call.result < 0:
            return
        if not call.path.startswith(self._folder + "/"):  # itself, or of the folders above
            if call.kind == "sync" and call.path == self._folder:
                self._root.sync()
            return
        folder, name = self._place(call.path)
        node = folder.get(name)  # none: removed while it was open
        if call.kind == "open":
            node = folder.setdefault(name, Node(bytearray()))
            if call.place:
                node.now = bytearray()
        elif call.kind == "make_folder":
            folder[name] = Node({})
        elif call.kind == "unlink":
            del folder[name]
        elif call.kind == "rename":
            other, new = self._place(call.other)
            other[new] = folder.pop(name)
        elif node and call.kind == "sync":
            node.sync()
        elif node and call.kind in ("write", "truncate"):
            end = call.place + len(call.data)
            node.now.extend(bytes(max(0, end - len(node.now))))
            if call.kind == "write":
                node.now[call.place : end] = call.data
            else:
                del node.now[end:]

    def after_power_cut(self, lost=lambda: True):
        """{name: bytes, or the same of a folder}; lost() decides for each thing that is not safe"""
        return self._rest(self._root, lost)

    def _place(self, path):
        """-> ({name: Node} of the folder it is in, its name)"""
        *above, name = path.removeprefix(self._folder + "/").split("/")
        entries = self._root.now
        for part in above:
            entries = entries[part].now
        return entries, name

    def _rest(self, node, lost):
        if not isinstance(node.now, dict):
            return bytes(node.now if node.now == node.safe or not lost() else node.safe)
        left = {}
        for name in sorted({**node.now, **node.safe}):
            now, safe = node.now.get(name), node.safe.get(name)
            kept = now if now is safe or not lost() else safe
            if kept:
                left[name] = self._rest(kept, lost)
        return left


def write_tree(tree, folder):
    folder.mkdir(parents=True)
    for name, content in tree.items():
        if isinstance(content, dict):
            write_tree(content, folder / name)
        else:
            (folder / name).write_bytes(content)


def read_tree(folder):
    return {path.name: read_tree(path) if path.is_dir() else path.read_bytes() for path in folder.iterdir()}


MANIFEST = "manifest.json"


def committed(run):
    """{name: {file: bytes}} of the checkpoints that have a manifest, of a run folder's tree"""
    found = run.get("checkpoints", {})
    return {name: found[name] for name in sorted(found) if re.fullmatch(r"step-\d+", name) and MANIFEST in found[name]}


def is_whole(checkpoint):
    """Whether it holds what its manifest names."""
    files = json.loads(checkpoint[MANIFEST])["files"]
    return bool(files) and all(
        hashlib.sha256(checkpoint.get(file["name"], b"")).hexdigest() == file["sha256"] for file in files
    )
