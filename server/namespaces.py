"""The kernel's other means by which a process gives something up: namespaces, parent's death, privileges."""

from __future__ import annotations

import ctypes
import os
import signal

CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


def leave_shared_namespaces() -> None:
    """Own user, network and IPC namespaces: no network device is up in there, not even loopback.

    Raises:
        OSError: the kernel or a container's policy refuses.
    """
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    # Without a mapping the process would see itself as user 65534.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that started it ends; the caller compares getppid afterwards."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def forbid_new_privileges() -> None:
    """No set-uid program gives this process or its children more than it has."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
