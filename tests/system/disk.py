"""Replays the journal of file calls that faults.c writes, to find what a disk still holds after a power cut and which
checkpoints are complete in it.

The model is what POSIX promises and no more: fsync of a file makes its content safe, fsync of a folder makes the names
in it safe (creations, renames, removals). Each change that is not safe may or may not be lost, independently of others.
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
    place: int  # offset of a write, new length of a truncate, nonzero if an open truncates
    path: str
    other: str  # the new path of a rename
    data: bytes


def read_journal(path):
    """Returns the Calls of a journal in order."""
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
    """Returns [(N, call)] of a rank in `folder`: N counts the calls of the same kind, as in LATERNA_FAULT=KIND:N."""
    counts, folder, found = Counter(), str(folder), []
    for call in calls:
        if call.rank == rank and (call.path == folder or call.path.startswith(folder + "/")):
            counts[call.kind] += 1
            found.append((counts[call.kind], call))
    return found


class Node:
    """A file (bytes) or a folder ({name: Node}): its current content, and its safe content as of the last fsync."""

    def __init__(self, content):
        self.now, self.safe = content, type(content)()

    def sync(self):
        self.safe = type(self.now)(self.now)


class Disk:
    """A simulated disk that holds `folder`, initially empty, and changes as calls are applied."""

    def __init__(self, folder):
        self._folder = str(folder)
        self._root = Node({})

    def apply(self, call):
        if call.result < 0:
            return
        if not call.path.startswith(self._folder + "/"):  # `folder` itself or a folder above it
            if call.kind == "sync" and call.path == self._folder:
                self._root.sync()
            return
        folder, name = self._place(call.path)
        node = folder.get(name)  # None: the file was removed while it was open
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
        """{name: bytes, or such a dict for a folder} that is left; lost() decides for each change that is not safe."""
        return self._rest(self._root, lost)

    def _place(self, path):
        """Returns ({name: Node} of the folder that contains `path`, the last component of `path`)."""
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
    """{name: {file: bytes}} of the checkpoints that have a manifest; `run` is the tree of a run folder."""
    found = run.get("checkpoints", {})
    return {name: found[name] for name in sorted(found) if re.fullmatch(r"step-\d+", name) and MANIFEST in found[name]}


def is_whole(checkpoint):
    """Whether the checkpoint holds every file that its manifest names, with the right SHA-256."""
    files = json.loads(checkpoint[MANIFEST])["files"]
    return bool(files) and all(
        hashlib.sha256(checkpoint.get(file["name"], b"")).hexdigest() == file["sha256"] for file in files
    )
