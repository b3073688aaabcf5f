CREATE TABLE job (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    request_id TEXT,
    request_hash TEXT NOT NULL,
    spec TEXT NOT NULL,
    state TEXT NOT NULL,
    created INTEGER NOT NULL,
    started INTEGER,
    ended INTEGER,
    epoch INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    PRIMARY KEY (tenant, id),
    UNIQUE (tenant, request_id)
) STRICT;
CREATE INDEX job_by_state ON job (state, created);
CREATE INDEX job_by_age ON job (tenant, created, id);
CREATE TABLE stage_run (
    tenant TEXT NOT NULL,
    job_id TEXT NOT NULL,
    name TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL,
    key TEXT NOT NULL,
    pid INTEGER,
    pid_start INTEGER,
    seconds REAL NOT NULL DEFAULT 0,
    peak_memory_bytes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, job_id, name, attempt),
    FOREIGN KEY (tenant, job_id) REFERENCES job (tenant, id) ON DELETE CASCADE
) STRICT;
CREATE INDEX stage_run_by_key ON stage_run (tenant, key);
CREATE TABLE event (
    tenant TEXT NOT NULL,
    job_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (tenant, job_id, seq),
    FOREIGN KEY (tenant, job_id) REFERENCES job (tenant, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE TABLE artifact (
    tenant TEXT NOT NULL,
    job_id TEXT NOT NULL,
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    reproducible INTEGER NOT NULL,
    folder TEXT NOT NULL,
    PRIMARY KEY (tenant, job_id, path),
    FOREIGN KEY (tenant, job_id) REFERENCES job (tenant, id) ON DELETE CASCADE
) STRICT;
CREATE INDEX artifact_by_digest ON artifact (tenant, sha256);
CREATE TABLE pool (
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    job_id TEXT NOT NULL,
    ready INTEGER NOT NULL,
    images INTEGER NOT NULL,
    bad_images INTEGER NOT NULL,
    duplicates INTEGER NOT NULL,
    near_duplicates INTEGER NOT NULL,
    shards INTEGER NOT NULL,
    size INTEGER NOT NULL,
    short_side INTEGER NOT NULL,
    quality INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (tenant, name, sha256)
) STRICT;
