"""Files to blocks of bytes and to lines: decompressed as their names say, to the end or not at all.

A compressed file that was cut is never taken for a whole one, and what was joined to it (by `cat`, pzstd, pbzip2 or
`xz --block-size`) is read too.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from slmjax.data.optional_packages import import_optional
from slmjax.data.reading.zstd_frames import MAX_WINDOW, check_frames
from slmjax.errors import UserError, one_line

Consumed = Callable[[int], object]  # told how many bytes of the files were read since the last call

MAX_LINE = 256 << 20  # bytes of a line, and of a JSON value
_INPUT = 64 << 10  # compressed bytes that are read at once
_XZ_MEMORY = 2 << 30  # bytes that the dictionary of an .xz file may take; `xz -9` needs 65 MiB
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SUFFIXES = (".gz", ".zst", ".zstd", ".xz", ".bz2")


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def plain_name(path: Path) -> str:
    """The name of a file in lower case, without the suffix of its compression."""
    name = path.name.lower()
    return name.removesuffix(compression(path))


def compression(path: Path) -> str:
    """The suffix that names how a file is compressed, in lower case; empty where it is not."""
    suffix = path.suffix.lower()
    return suffix if suffix in _SUFFIXES else ""


def blocks(path: Path, consumed: Consumed = lambda _: None, size: int = 1 << 20) -> Iterator[bytes]:
    """The decompressed content, at most `size` bytes at a time.

    Raises:
        UserError: damaged or incomplete data, or a pointer of Git LFS in its place.
    """
    told = 0
    with open(path, "rb") as raw:
        refuse_pointer(path, raw)
        try:
            stream = _open(path, raw)
            while block := stream.read(size):
                position = raw.tell()
                consumed(position - told)
                told = position
                yield block
            consumed(raw.tell() - told)
        except UserError:
            raise
        except (EOFError, ValueError, zlib.error, OSError) as error:
            raise UserError(f"{path} is damaged or incomplete ({one_line(error)}): fetch or make it again.") from error
        except Exception as error:
            if type(error).__name__ not in ("ZstdError", "LZMAError"):  # of modules that are imported when needed
                raise
            raise UserError(f"{path} is damaged or incomplete ({one_line(error)}): fetch or make it again.") from error


def lines(path: Path, consumed: Consumed = lambda _: None) -> Iterator[bytes]:
    """The lines of the decompressed content, without their ends."""
    parts: list[bytes] = []
    length = 0
    for block in blocks(path, consumed):
        first, *others = block.split(b"\n")
        parts.append(first)
        length += len(first)
        if length > MAX_LINE:
            raise UserError(f"{path} has a line of more than {MAX_LINE >> 20} MiB: put each record on its own line.")
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts, length = [others[-1]], len(others[-1])
    if length:
        yield b"".join(parts)


def refuse_pointer(path: Path, file: IO[bytes]) -> None:
    """UserError where a clone without Git LFS left a few lines of text in the place of the data."""
    beginning = file.read(len(_LFS_POINTER))
    file.seek(0)
    if beginning == _LFS_POINTER:
        raise UserError(f"{path} is a pointer of Git LFS and not the data: fetch the data with git lfs pull.")


def _open(path: Path, raw: IO[bytes]) -> _Stream:
    kind = compression(path)
    if kind and path.stat().st_size == 0:
        raise EOFError("it is empty")
    match kind:
        case ".gz":
            return gzip.GzipFile(fileobj=raw)
        case ".zst" | ".zstd":
            zstandard = import_optional("zstandard", path)
            check_frames(path)
            decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
            return decompressor.stream_reader(raw, read_across_frames=True)
        case ".xz":
            lzma = import_optional("lzma", path)  # some builds of Python lack it
            return _Joined(raw, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY))
        case ".bz2":
            return _Joined(raw, import_optional("bz2", path).BZ2Decompressor)
    return raw


class _Joined:
    """Compressed streams one after another.

    The readers of the standard library take what follows a stream and does not decompress for something foreign, and
    leave it out in silence; here it is an error. Zeros between streams are padding.
    """

    def __init__(self, raw: IO[bytes], begin: Callable[[], Any]):
        self._raw, self._begin = raw, begin
        self._decompressor = begin()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; empty at the end of the file."""
        while True:
            data = b""
            if self._decompressor.eof:
                data = self._decompressor.unused_data or self._raw.read(_INPUT)
                while data and not (data := data.lstrip(b"\0")):
                    data = self._raw.read(_INPUT)
                if not data:
                    return b""
                self._decompressor = self._begin()
            elif self._decompressor.needs_input:
                data = self._raw.read(_INPUT)
                if not data:
                    raise EOFError("the compressed data has no end")
            block = self._decompressor.decompress(data, size)
            if block:
                return block
