"""Linux's own limits for a process that runs a stranger's program: namespaces, Landlock, a seccomp filter.

Standard library alone, since it is used by an isolated process. Each function says whether the kernel took it; all of
them hold for the calling process and whatever it starts, and none can be taken back. References: user_namespaces(7),
landlock(7), seccomp(2); numbers of calls: <asm/unistd_64.h> (x86_64), <asm-generic/unistd.h> (aarch64).
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import stat
import sys
from collections.abc import Sequence

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

# prctl(2)
_SET_PDEATHSIG, _SET_SECCOMP, _SET_NO_NEW_PRIVS, _MODE_FILTER = 1, 22, 38, 2
# unshare(2)
_NEWIPC, _NEWUSER, _NEWNET = 0x08000000, 0x10000000, 0x40000000
# landlock(7): the rights on files, in the order of their bits, and the last bit of each version of the interface
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _VERSION, _PATH_BENEATH = 444, 445, 446, 1, 1
_LAST_RIGHT = {1: 12, 2: 13, 3: 14, 4: 14}  # 5 and above: 15
_READ_FILE, _READ_DIR, _MAKE_SPECIAL = 1 << 2, 1 << 3, 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12
_ON_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
# seccomp(2)
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_EPERM, _ENOSYS, _X32, _CLONE_THREAD = 1, 38, 0x40000000, 0x00010000

# Calls by what they would do: (x86_64, aarch64); 0 where an architecture lacks it.
_REFUSED = {
    "network": [(41, 198), (53, 199)],
    "io_uring": [(425, 425), (426, 426), (427, 427)],
    "processes": [(57, 0), (58, 0), (59, 221), (322, 281)],
    "signals": [(62, 129), (200, 130), (234, 131), (129, 138), (297, 240), (424, 424), (434, 434), (438, 438)],
    "other processes": [(101, 117), (310, 270), (311, 271), (312, 272), (440, 440)],
    "namespaces": [(272, 97), (308, 268), (165, 40), (166, 39), (155, 41), (161, 51)]
    + [(n, n) for n in (428, 429, 430, 431, 432, 433, 442)],
    "kernel": [(321, 280), (298, 241), (250, 219), (248, 217), (249, 218), (175, 105), (176, 106), (313, 273)]
    + [(246, 104), (320, 294), (169, 142), (167, 224), (168, 225), (170, 161), (171, 162), (164, 170), (227, 112)]
    + [
        (159, 171),
        (323, 282),
        (179, 60),
        (163, 89),
        (172, 0),
        (173, 0),
        (300, 262),
        (301, 263),
        (303, 264),
        (304, 265),
    ],
    "limits": [(160, 164), (157, 167), (317, 277)],
    "memory of its own kind": [(319, 279), (29, 194), (68, 186), (64, 190), (240, 180)],
    "owners and modes": [(90, 0), (91, 52), (268, 53), (452, 452), (92, 0), (93, 55), (94, 0), (260, 54), (188, 5)]
    + [
        (189, 6),
        (190, 7),
        (197, 14),
        (198, 15),
        (199, 16),
        (132, 0),
        (235, 0),
        (280, 88),
        (261, 0),
        (133, 0),
        (259, 33),
    ],
}
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction))]


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def leave_network() -> bool:
    """Enter a network of its own that reaches nothing, as a user who owns nothing. Only while it has one thread."""
    return _LIBC is not None and _LIBC.unshare(_NEWUSER | _NEWNET | _NEWIPC) == 0


def die_with_parent() -> bool:
    """Be killed when the process that started this one ends."""
    return _LIBC is not None and _LIBC.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0


def renounce_privileges() -> bool:
    """Gain no privilege by anything that is executed; the kernel wants it before the two below."""
    return _LIBC is not None and _LIBC.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0


def restrict_files(readable: Sequence[str], writable: str) -> bool:
    """Read only below some directories, and write (regular files, directories) below one."""
    if _LIBC is None:
        return False
    version = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    handled = (2 << _LAST_RIGHT.get(version, 15)) - 1
    network, scoped = (3 if version >= 4 else 0), (3 if version >= 6 else 0)  # TCP; abstract sockets and signals
    wanted = _Ruleset(handled, network, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _LIBC.syscall(_CREATE_RULESET, ctypes.byref(wanted), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        for path in readable:
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        _allow(ruleset, os.devnull, handled & _ON_FILES & ~1)
        _allow(ruleset, writable, handled & ~_MAKE_SPECIAL & ~1)
        return _LIBC.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Add a rule; a path that is not there has none."""
    assert _LIBC is not None
    try:
        parent = os.open(path, getattr(os, "O_PATH", 0) | os.O_CLOEXEC)
    except OSError:
        return
    try:
        on_directory = stat.S_ISDIR(os.fstat(parent).st_mode)
        rule = _Beneath(rights if on_directory else rights & _ON_FILES, parent)
        _LIBC.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)


def refuse_calls() -> bool:
    """Refuse system calls that no calculation needs: sockets, processes, signals, other limits, other owners.

    Threads remain, which need `clone` for themselves.
    """
    if _LIBC is None or platform.machine() not in _ARCHITECTURES or sys.maxsize < 1 << 32:
        return False
    column, architecture = _ARCHITECTURES[platform.machine()]
    program = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number of the call
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_EQUAL, 0, 1, _CLONE3[column]),  # its flags cannot be seen from here; the C library then takes clone
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        (_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, 16),  # its flags
        (_BITS, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_EQUAL, 0, 6, _PRLIMIT[column]),
        (_LOAD, 0, 0, 32),  # the address of the new limits: without one they are only read
        (_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, 36),
        (_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
    ]
    for number in (pair[column] for pairs in _REFUSED.values() for pair in pairs):
        if number:
            program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    program.append((_RETURN, 0, 0, _ALLOW))
    instructions = (_Instruction * len(program))(*(_Instruction(*one) for one in program))
    wanted = _Filter(len(program), instructions)
    return _LIBC.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(wanted), 0, 0) == 0
