"""Landlock by system call: a process gives up every file that it does not name (Linux 5.13 and later).

Numbers and flags are those of linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG = 1
RULE_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
FIRST_ABI_RIGHTS = (1 << 13) - 1
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1 << 0, 1 << 1
ABI_REFER, ABI_TRUNCATE, ABI_NETWORK, ABI_IOCTL, ABI_SCOPES = 2, 3, 4, 5, 6

READ = EXECUTE | READ_FILE | READ_DIR
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
PACKAGES = ("server", "pu_engine", "exporters", "punnet")
SYSTEM_PATHS = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/fonts",
    "/proc",
    "/sys/devices/system/cpu",
    "/dev/urandom",
    "/dev/null",
)
WRITABLE_DEVICES = ("/dev/null",)

_libc = ctypes.CDLL(None, use_errno=True)


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi_version() -> int:
    """The kernel's Landlock ABI; 0 where there is none."""
    return max(0, int(_libc.syscall(CREATE_RULESET, None, 0, VERSION_FLAG)))


def restrict(*, read: Iterable[Path], write: Iterable[Path]) -> None:
    """Allow this process and its children these paths only. no_new_privs must be set. Paths that lack are skipped.

    Raises:
        OSError: the kernel refused.
    """
    abi = abi_version()
    handled = _handled_rights(abi)
    attributes = _RulesetAttributes(
        fs=handled,
        net=BIND_TCP | CONNECT_TCP if abi >= ABI_NETWORK else 0,
        scoped=SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS if abi >= ABI_SCOPES else 0,
    )
    size = 24 if abi >= ABI_SCOPES else 16 if abi >= ABI_NETWORK else 8
    ruleset = _call(CREATE_RULESET, ctypes.byref(attributes), size, 0)
    try:
        for path in read:
            _allow(ruleset, path, READ & handled)
        for path in (*write, *map(Path, WRITABLE_DEVICES)):
            _allow(ruleset, path, handled)
        _call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def interpreter_paths() -> tuple[Path, ...]:
    """What every Python child reads: system, interpreter, site-packages, the packages' source."""
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    sources = [place for spec in specs if spec for place in spec.submodule_search_locations or ()]
    return tuple(map(Path, (*SYSTEM_PATHS, sys.base_prefix, sys.prefix, *sources)))


def _handled_rights(abi: int) -> int:
    rights = FIRST_ABI_RIGHTS
    for needed, right in ((ABI_REFER, REFER), (ABI_TRUNCATE, TRUNCATE), (ABI_IOCTL, IOCTL_DEVICE)):
        rights |= right if abi >= needed else 0
    return rights


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= FILE_RIGHTS
        _call(ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.byref(_PathBeneath(allowed=rights, parent=descriptor)), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
