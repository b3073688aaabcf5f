"""A data folder of every earlier version becomes one of this version; one of a later version is refused."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from server import job_table, pool_table, schema
from server.schema import MIGRATIONS, SCHEMA_VERSION, SchemaMismatch, bring_up_to_date
from server.store import Store

EARLIER = Path(__file__).parent  # schema_<n>.sql: the tables as that version made them
POOL = "pools/local/web"


def tables(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Columns of every table, and what its indexes are on."""
    with closing(sqlite3.connect(path)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table' ORDER BY name")]
        return {
            name: [
                *db.execute(f"PRAGMA table_info({name})").fetchall(),
                *db.execute(f"PRAGMA foreign_key_list({name})").fetchall(),
                *sorted(r[1:4] for r in db.execute(f"PRAGMA index_list({name})").fetchall()),
            ]
            for name in names
        }


def data_folder_of_schema_1(root: Path) -> None:
    """A job that made a pool, in the layout of schema 1."""
    with closing(sqlite3.connect(root / "punnet.sqlite3")) as db:
        db.executescript((EARLIER / "schema_1.sql").read_text())
        db.execute(
            "INSERT INTO job (tenant, id, kind, request_hash, spec, state, created)"
            " VALUES ('local', 'j', 'ingest', 'h', '{\"name\": \"web\"}', 'SUCCEEDED', 5)"
        )
        db.execute("INSERT INTO artifact VALUES ('local', 'j', 'pool.json', 'abc', 2, 1, ?)", (POOL,))
        db.execute("INSERT INTO pool VALUES ('local', 'web', 'j', 1, 7, 1, 1, 99, 'abc', 5)")
        db.execute("PRAGMA user_version=1")
        db.commit()
    (root / POOL).mkdir(parents=True)
    (root / POOL / "pool.json").write_text("{}")


def check_migrated(root: Path) -> None:
    async def check() -> None:
        store = Store(root / "punnet.sqlite3")
        try:
            pool = await store.read(pool_table.pool_by_name, "local", "web")
            assert pool is not None
            assert (pool.images, pool.bad_images, pool.size, pool.duplicates) == (7, 1, 99, 0)
            job = await store.read(job_table.job_by_id, "local", "j")
            assert job is not None
            (artifact,) = job.artifacts
            assert (root / artifact.folder / artifact.path).read_text() == "{}"
            assert artifact.folder == f"{POOL}/abc"
        finally:
            store.close()

    asyncio.run(check())


def test_every_earlier_schema_has_a_step_and_its_tables_here() -> None:
    assert set(MIGRATIONS) == set(range(1, SCHEMA_VERSION))
    assert [version for version in MIGRATIONS if not (EARLIER / f"schema_{version}.sql").is_file()] == []


@pytest.mark.parametrize("version", sorted(MIGRATIONS))
def test_migrated_tables_are_those_of_a_new_data_folder(tmp_path: Path, version: int) -> None:
    old, new = tmp_path / "old.sqlite3", tmp_path / "new.sqlite3"
    with closing(sqlite3.connect(old)) as db:
        db.executescript((EARLIER / f"schema_{version}.sql").read_text() + f"PRAGMA user_version={version};")
    for path in (old, new):
        Store(path).close()
    assert tables(old) == tables(new)


def test_a_data_folder_of_schema_1_keeps_its_jobs_and_pools(tmp_path: Path) -> None:
    data_folder_of_schema_1(tmp_path)
    check_migrated(tmp_path)
    check_migrated(tmp_path)  # once more: nothing is left to do


def test_a_step_that_was_interrupted_between_folders_and_tables_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_folder_of_schema_1(tmp_path)
    monkeypatch.setattr(schema, "POOL_TABLE", "CREATE TABLE job (x)")  # is there already: the transaction is undone
    with closing(sqlite3.connect(tmp_path / "punnet.sqlite3", isolation_level=None)) as db:
        with pytest.raises(sqlite3.OperationalError):
            bring_up_to_date(db, tmp_path)
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    monkeypatch.undo()
    check_migrated(tmp_path)


def test_a_move_that_was_interrupted_half_way_is_completed(tmp_path: Path) -> None:
    data_folder_of_schema_1(tmp_path)
    (tmp_path / POOL).rename(tmp_path / "pools/local/.web.moving")
    check_migrated(tmp_path)


def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "punnet.sqlite3"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(SchemaMismatch, match=f"has schema {SCHEMA_VERSION + 1}; this version reads schemas 1 to"):
        Store(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
