"""A stage whose process was taken over says what it likes; the server believes none of it that is not a stage's."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.hostile.confined_intake import run_stage

HONEST = """
    import hashlib, json, os, sys
    from pathlib import Path
    from pu_engine.pipeline import ENGINE_VERSION, INTAKE
    from pu_engine.results import seal
    out = Path("out")
    out.mkdir()
    (out / "file").write_bytes(b"content")
    row = {"path": "file", "sha256": hashlib.sha256(b"content").hexdigest(), "size": 7, "reproducible": True}
    result = {"warnings": []}
    manifest = {
        "stage": INTAKE.name, "schema": INTAKE.schema, "engine": ENGINE_VERSION, "seconds": 1.0,
        "peak_memory_bytes": 1, "result": result, "result_sha256": "0" * 64, "files": [row],
    }
    def write(manifest):
        stable = [[r["path"], r["sha256"]] for r in manifest["files"] if r["reproducible"]]
        text = json.dumps([stable, manifest["result_sha256"]], separators=(",", ":"))
        manifest["digest"] = hashlib.sha256(text.encode()).hexdigest()
        (out / "manifest.json").write_text(json.dumps({**manifest, "seal": seal(manifest)}))
    def error(**fields):
        Path("error.json").write_text(json.dumps(fields))
        sys.exit(1)
    def say(data):
        os.write(int(sys.argv[1]), data)
"""
LIES = {
    "nothing": "",
    "another stage": "manifest['stage'] = 'report'; write(manifest)",
    "path out of its folder": "row['path'] = '../../secret'; write(manifest)",
    "absolute path": "row['path'] = '/etc/hostname'; write(manifest)",
    "wrong digest": "row['sha256'] = '1' * 64; write(manifest)",
    "wrong size": "row['size'] = 8; write(manifest)",
    "missing file": "(out / 'file').unlink(); write(manifest)",
    "link as file": "(out / 'file').unlink(); os.symlink('/etc/hostname', out / 'file'); write(manifest)",
    "link as folder": "write(manifest); out.rename('real'); os.symlink('real', 'out')",
    "FIFO as file": "(out / 'file').unlink(); os.mkfifo(out / 'file'); write(manifest)",
    "FIFO as manifest": "os.mkfifo(out / 'manifest.json')",
    "not an object": "(out / 'manifest.json').write_text('[]')",
    "deep manifest": "(out / 'manifest.json').write_text('[' * 100000)",
    "endless manifest": "(out / 'manifest.json').write_bytes(b' ' * (17 << 20))",
    "lone surrogate": "row['path'] = 'a\\ud800'; write(manifest)",
    "infinite seconds": "manifest['seconds'] = float('inf'); write(manifest)",
    "unknown code": "error(code='ROOT', message='', remedy='', details={})",
    "error of another form": "error(code=['INTERNAL'])",
    "endless line": "write(manifest); [say(b'x' * 4096) for _ in range(64)]",
    "line that is no progress": "write(manifest); say(b'[1]' + bytes([10]))",
    "flood of warnings": "write(manifest); [say(b'{\"warning\": 1}' + bytes([10])) for _ in range(300)]",
}
PROTOCOL = "STAGE_PROTOCOL"


def judged(folder: Path, lie: str) -> tuple[str, str]:
    found = run_stage(folder, program=f"{textwrap.dedent(HONEST)}\n{lie}", wall_seconds=20)
    return found.code, found.message


@pytest.mark.parametrize("name", LIES)
def test_lie_of_a_stage_is_not_believed(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary")
    workdir = tmp_path / "stage" / "work"
    workdir.mkdir(parents=True)
    code, message = judged(workdir, LIES[name])
    assert code == PROTOCOL
    assert "canary" not in message


def test_honest_stage_is_believed(tmp_path: Path) -> None:
    assert judged(tmp_path, "write(manifest)") == ("", "")
    (tmp_path / "out").rename(tmp_path / "before")
    assert judged(tmp_path, "error(code='MODEL_BAD_GRAPH', message='m', remedy='r', details={})") == (
        "MODEL_BAD_GRAPH",
        "m",
    )


def test_text_of_a_stage_is_cut_and_made_readable(tmp_path: Path) -> None:
    code, message = judged(tmp_path, "error(code='INTERNAL', message='\\ud800' * 9999, remedy='', details={})")
    assert (code, set(message)) == ("INTERNAL", {"?"})
    assert len(message) <= 4000
