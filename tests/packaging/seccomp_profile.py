"""A container's seccomp profile, applied to this process by libseccomp, and then a program. No container is needed.

`python -m tests.packaging.seccomp_profile PROFILE.json PROGRAM ...`
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ALLOW, ERRNO = 0x7FFF0000, 0x00050000  # seccomp.h
EQUAL, MASKED_EQUAL = 4, 7
COMPARISONS = {"SCMP_CMP_EQ": EQUAL, "SCMP_CMP_MASKED_EQ": MASKED_EQUAL}
UNKNOWN = -1  # __NR_SCMP_ERROR


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


def library() -> ctypes.CDLL | None:
    """libseccomp, where it is installed."""
    name = ctypes.util.find_library("seccomp")
    if name is None:
        return None
    found = ctypes.CDLL(name)
    found.seccomp_init.restype = ctypes.c_void_p
    found.seccomp_init.argtypes = [ctypes.c_uint32]
    found.seccomp_load.argtypes = [ctypes.c_void_p]
    found.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Comparison))
    ]
    return found


def number(found: ctypes.CDLL, name: str) -> int:
    """The system call's number; UNKNOWN where no architecture has one of that name."""
    return int(found.seccomp_syscall_resolve_name(name.encode()))


def apply(profile: Mapping[str, Any], found: ctypes.CDLL) -> None:
    """Confine this process and all that it starts, for ever."""
    context = found.seccomp_init(_action(profile["defaultAction"], profile["defaultErrnoRet"]))
    for rule in profile["syscalls"]:
        action = _action(rule["action"], rule.get("errnoRet", 1))
        rows = [
            _Comparison(a["index"], COMPARISONS[a["op"]], a["value"], a.get("valueTwo", 0))
            for a in rule.get("args", ())
        ]
        for name in rule["names"]:
            syscall = number(found, name)
            if syscall >= 0:  # negative: another architecture has it
                _check(
                    found.seccomp_rule_add_array(context, action, syscall, len(rows), (_Comparison * len(rows))(*rows))
                )
    _check(found.seccomp_load(context))


def _action(name: str, code: int) -> int:
    return ALLOW if name == "SCMP_ACT_ALLOW" else ERRNO | code


def _check(status: int) -> None:
    if status != 0:
        raise OSError(-status, os.strerror(-status))


if __name__ == "__main__":
    loaded = library()
    if loaded is None:
        raise SystemExit("libseccomp is not installed")
    apply(json.loads(Path(sys.argv[1]).read_text()), loaded)
    os.execv(sys.argv[2], sys.argv[2:])
