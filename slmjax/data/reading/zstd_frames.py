"""Zstandard files followed from block to block without decompressing: does the file end where its last frame ends?

The library's reader takes the end of a cut file for the end of the data. The format: RFC 8878, section 3.
"""

from pathlib import Path
from typing import IO

MAX_WINDOW = 1 << 31  # bytes; that of `zstd --long=31`, the most that the library decompresses
_FRAME, _SKIPPABLE = 0xFD2FB528, range(0x184D2A50, 0x184D2A60)


def check_frames(path: Path) -> None:
    """Follow the frames of a file to its end.

    Raises:
        EOFError: the file ends inside a frame.
        ValueError: something else than a frame, or one that the library does not decompress.
    """
    size = path.stat().st_size
    with open(path, "rb", buffering=0) as file:  # a few bytes of each block are read
        position = 0
        while position < size:
            magic = _number(file, position, 4, size)
            if magic in _SKIPPABLE:
                position += 8 + _number(file, position + 4, 4, size)
            elif magic == _FRAME:
                position = _end_of_frame(file, position + 4, size)
            else:
                raise ValueError(f"no frame begins at byte {position:,}")
        if position > size:
            raise EOFError("its last frame has no end")


def _end_of_frame(file: IO[bytes], position: int, size: int) -> int:
    descriptor = _number(file, position, 1, size)
    single, checksum, dictionary = bool(descriptor & 32), bool(descriptor & 4), (0, 1, 2, 4)[descriptor & 3]
    content_size = (int(single), 2, 4, 8)[descriptor >> 6]
    position += 1
    if not single:
        window = _number(file, position, 1, size)
        base = 1 << (10 + (window >> 3))
        if base + base // 8 * (window & 7) > MAX_WINDOW:
            raise ValueError("it needs a window above 2 GiB, so compress it again with zstd --long=31 or less")
        position += 1
    if dictionary and _number(file, position, dictionary, size):
        raise ValueError("it needs a dictionary, so compress it again without one")
    position += dictionary + content_size
    last = False
    while not last:
        block = _number(file, position, 3, size)
        last, kind, length = bool(block & 1), block >> 1 & 3, block >> 3
        if kind == 3:
            raise ValueError(f"the block at byte {position:,} is of a reserved kind")
        position += 3 + (1 if kind == 1 else length)  # kind 1 repeats one byte
    return position + 4 * checksum


def _number(file: IO[bytes], position: int, length: int, size: int) -> int:
    if position + length > size:
        raise EOFError("its last frame has no end")
    file.seek(position)
    return int.from_bytes(file.read(length), "little")
