"""Reads and writes small, plain PNG files without an image library."""

import struct
import zlib
from pathlib import Path

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, image):
    """Writes an image, uint8 [H,W] or [H,W,3]."""
    height, width = image.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(image))
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    Path(path).write_bytes(
        SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    )


def read_png(path):
    """Returns uint8 [H,W] or [H,W,3]. Asserts that the file is sound: signature, checksums, format, last chunk."""
    data, at, parts = Path(path).read_bytes(), len(SIGNATURE), []
    assert data.startswith(SIGNATURE), "not a PNG file"
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        assert struct.unpack(">I", checksum)[0] == zlib.crc32(kind + body), f"checksum of {kind}"
        parts.append((kind, body))
        at += 12 + length
    assert parts[0][0] == b"IHDR" and parts[-1][0] == b"IEND"
    width, height, depth, colour, *_, interlaced = struct.unpack(">IIBBBBB", parts[0][1])
    assert depth == 8 and colour in (0, 2) and not interlaced
    return _unfiltered(
        zlib.decompress(b"".join(body for kind, body in parts if kind == b"IDAT")),
        height,
        width,
        3 if colour == 2 else 1,
    )


def _unfiltered(stream, height, width, channels):
    assert len(stream) == height * (1 + width * channels)
    rows = np.frombuffer(stream, np.uint8).reshape(height, -1)
    above, image = [0] * (width * channels), []
    for row in rows.tolist():
        kind, line = row[0], row[1:]
        for i in range(len(line)):
            a = line[i - channels] if i >= channels else 0
            b = above[i]
            c = above[i - channels] if i >= channels else 0
            line[i] = line[i] + (0, a, b, (a + b) // 2, _paeth(a, b, c))[kind] & 255
        image.append(line)
        above = line
    return np.array(image, np.uint8).reshape((height, width, 3) if channels == 3 else (height, width))


def _paeth(a, b, c):
    p = a + b - c
    return min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
