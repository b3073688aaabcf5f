"""What a stage could do once a model had taken its process over: it tries, and reports what worked."""

from __future__ import annotations

import json
import os
import socket
import textwrap
from pathlib import Path

import pytest

from server import landlock
from tests.hostile.confined_intake import run_stage, take_in
from tests.hostile.seed_models import plain

PROGRAM = """
    import ctypes, json, os, socket, sys
    from pathlib import Path
    libc = ctypes.CDLL(None, use_errno=True)
    server, foreign, port = {server}, Path({foreign!r}), {port}
    def checked(result):
        if result < 0:
            raise OSError(ctypes.get_errno(), "refused")
    def abstract():
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\\0" + {name!r})
    attempts = {{
        "read a foreign file": (foreign / "blob").read_bytes,
        "list a foreign folder": lambda: os.listdir(foreign),
        "write a foreign file": lambda: (foreign / "blob").write_text("x"),
        "remove a foreign file": (foreign / "blob").unlink,
        "hard link a foreign file": lambda: os.link(foreign / "blob", "mine"),
        "follow its own link": lambda: (os.symlink(foreign / "blob", "there"), Path("there").read_bytes()),
        "rename out of its folder": lambda: (Path("f").write_text("x"), os.rename("f", foreign / "new")),
        "read the users": Path("/etc/passwd").read_bytes,
        "read the server's variables": Path(f"/proc/{{server}}/environ").read_bytes,
        "read the server's memory": Path(f"/proc/{{server}}/mem").read_bytes,
        "see the server's files": lambda: os.readlink(f"/proc/{{server}}/fd/0"),
        "read through the server's root": Path(f"/proc/{{server}}/root/etc/passwd").read_bytes,
        "signal the server": lambda: os.kill(server, 0),
        "trace the server": lambda: checked(libc.ptrace(16, server, 0, 0)),
        "connect over TCP": lambda: socket.create_connection(("127.0.0.1", port), timeout=2),
        "connect to an abstract socket": abstract,
        "send a datagram": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)),
        "become another user": lambda: os.setuid(12345),
        "make a device": lambda: os.mknod("sda", 0o60600, os.makedev(8, 0)),
        "mount": lambda: checked(libc.mount(b"none", b"/proc", b"tmpfs", 0, None)),
        "raise its limits": lambda: __import__("resource").setrlimit(9, (1 << 50, 1 << 50)),
    }}
    worked = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, ValueError):
            continue
        worked.append(name)
    Path("report.json").write_text(json.dumps(worked))
"""


def test_stage_that_was_taken_over_reaches_nothing(tmp_path: Path) -> None:
    if landlock.abi_version() < landlock.ABI_SCOPES:
        pytest.skip("this kernel's Landlock does not hold signals and abstract sockets back")
    foreign, workdir = tmp_path / "foreign", tmp_path / "work"
    for folder in (foreign, workdir):
        folder.mkdir()
    (foreign / "blob").write_text("canary")
    name = f"punnet-hostile-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0{name}")
        local.listen()
        program = PROGRAM.format(server=os.getpid(), foreign=str(foreign), port=listener.getsockname()[1], name=name)
        run_stage(workdir, program=textwrap.dedent(program))
    assert json.loads((workdir / "report.json").read_text()) == []
    assert [path.read_text() for path in foreign.iterdir()] == ["canary"]


def test_descriptors_of_the_server_are_closed_in_a_stage(tmp_path: Path) -> None:
    with open(tmp_path / "secret", "w") as secret:
        os.set_inheritable(secret.fileno(), True)
        workdir = tmp_path / "work"
        workdir.mkdir()
        program = "import json, os; open('report.json', 'w').write(json.dumps([os.readlink(f'/proc/self/fd/{n}')"
        run_stage(workdir, program=f"{program} for n in range(3, 64) if os.path.exists(f'/proc/self/fd/{{n}}')]))")
    opened = json.loads((workdir / "report.json").read_text())
    assert not any("secret" in name for name in opened)


def test_intake_leaves_nothing_but_its_results(tmp_path: Path) -> None:
    """onnxruntime's Linux wheels write a device id and a database beneath the home folder, unless told not to."""
    assert take_in(tmp_path, plain().SerializeToString()).code == ""
    work = tmp_path / "work"
    left = {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()}
    listed = {f"out/{row['path']}" for row in json.loads((work / "out" / "manifest.json").read_text())["files"]}
    assert left == {"inputs.json", "stderr.log", "out/manifest.json"} | listed
