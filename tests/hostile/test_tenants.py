"""What belongs to another tenant is answered, for every method, exactly as what is not there."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from punnet.v1 import blob_pb2, build_pb2, catalogue_pb2, compression_pb2, job_pb2, options_pb2, pool_pb2
from server.callers import tenant
from tests.service.accounts import AccountsServer, Tenant, methods
from tests.service.running_server import chunks, image_tar, reason, until

ROOT = Path(__file__).resolve().parents[2]
TAR = image_tar(6)
TAR_SHA256 = hashlib.sha256(TAR).hexdigest()


@dataclass(frozen=True)
class Names:
    """Of things that are another tenant's, or nobody's."""

    job: str
    pool: str
    sha256: str

    @property
    def digest(self) -> blob_pb2.BlobDigest:
        return blob_pb2.BlobDigest(sha256=self.sha256, size=len(TAR))


@dataclass(frozen=True)
class World:
    owner: Tenant
    stranger: Tenant
    theirs: Names
    nobodys: Names


@pytest.fixture(scope="module")
def world(accounts_server: AccountsServer) -> World:
    """The owner has a blob, a pool and a job that has ended; the stranger has nothing."""
    owner, stranger = accounts_server.tenant("owner"), accounts_server.tenant("stranger")
    owner.blobs.UploadBlob(chunks(TAR))
    request = pool_pb2.CreatePoolRequest(name="web", tar_sha256=[TAR_SHA256], request_id="once")
    job = owner.pools.CreatePool(request).job
    get = compression_pb2.GetJobRequest(id=job.id)
    until(lambda: owner.compression.GetJob(get).job.state == job_pb2.JOB_STATE_SUCCEEDED, 60)
    return World(
        owner=owner,
        stranger=stranger,
        theirs=Names(job=job.id, pool="web", sha256=TAR_SHA256),
        nobodys=Names(job=secrets.token_hex(16), pool="nowhere", sha256=secrets.token_hex(32)),
    )


def compression(names: Names, *, pool: str = "") -> compression_pb2.CompressRequest:
    rows = [options_pb2.ImageBlob(label=label, sha256=names.sha256) for label in ("cat", "dog")]
    return compression_pb2.CompressRequest(
        teacher=options_pb2.Teacher(sha256=names.sha256),
        images=options_pb2.LabelledImages(blobs=options_pb2.ImageBlobs(images=rows)),
        pool=pool,
        validate_only=not pool,
    )


def inspection(names: Names) -> catalogue_pb2.InspectTeacherRequest:
    request = compression(names)
    return catalogue_pb2.InspectTeacherRequest(teacher=request.teacher, images=request.images)


# One call of each method that names something; streams are read to their end.
ASKED: dict[str, Callable[[Tenant, Names], Any]] = {
    "Compress": lambda t, n: t.compression.Compress(compression(n, pool=n.pool)),
    "PlanCompression": lambda t, n: t.compression.PlanCompression(
        compression_pb2.PlanCompressionRequest(compression=compression(n, pool=n.pool))
    ),
    "GetJob": lambda t, n: t.compression.GetJob(compression_pb2.GetJobRequest(id=n.job)),
    "WatchJob": lambda t, n: list(t.compression.WatchJob(compression_pb2.WatchJobRequest(id=n.job))),
    "CancelJob": lambda t, n: t.compression.CancelJob(compression_pb2.CancelJobRequest(id=n.job)),
    "DeleteJob": lambda t, n: t.compression.DeleteJob(compression_pb2.DeleteJobRequest(id=n.job)),
    "DownloadBlob": lambda t, n: list(t.blobs.DownloadBlob(blob_pb2.DownloadBlobRequest(sha256=n.sha256))),
    "CreatePool": lambda t, n: t.pools.CreatePool(pool_pb2.CreatePoolRequest(name="new", tar_sha256=[n.sha256])),
    "AppendPool": lambda t, n: t.pools.AppendPool(pool_pb2.AppendPoolRequest(name=n.pool, tar_sha256=[n.sha256])),
    "VerifyPool": lambda t, n: t.pools.VerifyPool(pool_pb2.VerifyPoolRequest(name=n.pool)),
    "DescribePool": lambda t, n: t.pools.DescribePool(pool_pb2.DescribePoolRequest(name=n.pool)),
    "GetPool": lambda t, n: t.pools.GetPool(pool_pb2.GetPoolRequest(name=n.pool)),
    "DeletePool": lambda t, n: t.pools.DeletePool(pool_pb2.DeletePoolRequest(name=n.pool)),
    "CreateBuild": lambda t, n: t.builds.CreateBuild(build_pb2.CreateBuildRequest(job_id=n.job, target="jetson-orin")),
    "RenewBuild": lambda t, n: t.builds.RenewBuild(build_pb2.RenewBuildRequest(job_id=n.job, lease=1)),
    "FinishBuild": lambda t, n: t.builds.FinishBuild(
        build_pb2.FinishBuildRequest(job_id=n.job, lease=1, given_back=True)
    ),
    "InspectTeacher": lambda t, n: t.catalogue.InspectTeacher(inspection(n)),
}
# These answer OK whatever is asked; their answers are compared below.
ANSWERED = {"FindMissingBlobs", "GetUploadStatus", "UploadBlob", "ListJobs", "ListPools", "LeaseBuild"}
NO_TENANTS_DATA = {"GetCapabilities", "ListStudents"}
ALL_TENANTS = {"CollectGarbage"}  # by a token of scope admin only, which is the operator's


def test_no_service_names_a_tenant_of_its_own() -> None:
    naming = {path.name for path in (ROOT / "server").glob("*.py") if "LOCAL_TENANT" in path.read_text()}
    assert naming <= {"store.py", "admission.py", "main.py"}
    with pytest.raises(LookupError):  # outside of a call nobody is the caller
        tenant()


def test_every_method_is_compared_here() -> None:
    assert ASKED.keys() | ANSWERED | NO_TENANTS_DATA | ALL_TENANTS == {method.name for method in methods()}


@pytest.mark.parametrize("name", sorted(ASKED))
def test_foreign_thing_is_answered_as_one_that_is_not_there(world: World, name: str) -> None:
    said = []
    for names in (world.theirs, world.nobodys):
        with pytest.raises(grpc.RpcError) as refused:
            ASKED[name](world.stranger, names)
        code, details = reason(refused.value)
        text = f"{refused.value.details()} {sorted(details.items())}"
        for word in (names.job, names.pool, names.sha256):
            text = text.replace(word, "X")
        said.append((refused.value.code(), code, text))
    assert said[0] == said[1]
    lost = name in ("RenewBuild", "FinishBuild")  # a lease that one does not hold is lost, whoever has it
    assert said[0][:2] == (grpc.StatusCode.FAILED_PRECONDITION, "BUILD_LEASE_LOST") or not lost
    assert said[0][0] == grpc.StatusCode.NOT_FOUND or lost


def test_validation_of_a_foreign_teacher_finds_no_blob(world: World) -> None:
    for names in (world.theirs, world.nobodys):
        with pytest.raises(grpc.RpcError) as refused:
            world.stranger.compression.Compress(compression(names))
        assert reason(refused.value)[0] == "BLOB_MISSING"


def test_foreign_blobs_are_missing_and_their_uploads_begin_at_zero(world: World) -> None:
    digests = [world.theirs.digest, world.nobodys.digest]
    missing = world.stranger.blobs.FindMissingBlobs(blob_pb2.FindMissingBlobsRequest(digests=digests)).missing
    assert list(missing) == digests
    for digest in digests:
        status = world.stranger.blobs.GetUploadStatus(blob_pb2.GetUploadStatusRequest(digest=digest))
        assert (status.committed_size, status.complete) == (0, False)
    own = world.owner.blobs.FindMissingBlobs(blob_pb2.FindMissingBlobsRequest(digests=digests)).missing
    assert list(own) == [world.nobodys.digest]


def test_lists_hold_what_is_the_callers(world: World) -> None:
    assert world.stranger.compression.ListJobs(compression_pb2.ListJobsRequest()).jobs == []
    assert world.stranger.pools.ListPools(pool_pb2.ListPoolsRequest()).pools == []
    jobs = world.owner.compression.ListJobs(compression_pb2.ListJobsRequest()).jobs
    assert world.theirs.job in [job.id for job in jobs]


def test_artifact_of_another_tenant_is_no_blob(world: World) -> None:
    pool = world.owner.pools.GetPool(pool_pb2.GetPoolRequest(name="web")).pool
    request = blob_pb2.DownloadBlobRequest(sha256=pool.sha256)
    assert list(world.owner.blobs.DownloadBlob(request))
    with pytest.raises(grpc.RpcError) as refused:
        list(world.stranger.blobs.DownloadBlob(request))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_same_bytes_names_and_request_ids_make_things_of_ones_own(
    world: World, accounts_server: AccountsServer
) -> None:
    third = accounts_server.tenant("third")
    assert third.blobs.UploadBlob(chunks(TAR)).committed_size == len(TAR)
    request = pool_pb2.CreatePoolRequest(name="web", tar_sha256=[TAR_SHA256], request_id="once")
    job = third.pools.CreatePool(request).job
    assert job.id != world.theirs.job
    get = compression_pb2.GetJobRequest(id=job.id)
    until(lambda: third.compression.GetJob(get).job.state == job_pb2.JOB_STATE_SUCCEEDED, 60)
    runs = third.compression.GetJob(get).job.stages
    assert [stage.state for stage in runs] == [job_pb2.STAGE_STATE_SUCCEEDED]  # nothing of the owner's is reused
    blobs = [next((accounts_server.data / "blobs" / t).glob(f"??/{TAR_SHA256}-*"), None) for t in ("owner", "third")]
    assert all(blobs)
    assert len({path.stat().st_ino for path in blobs if path}) == 2
    stages = [{p.name for p in (accounts_server.data / "stages" / t).iterdir()} for t in ("owner", "third")]
    assert stages[0] & stages[1] == stages[1]  # the same work has the same key, in a folder of each tenant's


def test_pool_that_the_operator_shares_is_read_by_all_and_changed_by_its_tenant_only(
    world: World, accounts_server: AccountsServer
) -> None:
    fourth = accounts_server.tenant("fourth")
    accounts_server.command("pool", "share", "web", "--tenant", "owner")
    try:
        (pool,) = fourth.pools.ListPools(pool_pb2.ListPoolsRequest()).pools
        assert (pool.name, pool.shared) == ("web", True)
        assert fourth.pools.GetPool(pool_pb2.GetPoolRequest(name="web")).pool == pool
        assert not world.owner.pools.GetPool(pool_pb2.GetPoolRequest(name="web")).pool.shared
        job = fourth.pools.VerifyPool(pool_pb2.VerifyPoolRequest(name="web")).job
        get = compression_pb2.GetJobRequest(id=job.id)
        until(lambda: fourth.compression.GetJob(get).job.state == job_pb2.JOB_STATE_SUCCEEDED, 60)
        fourth.blobs.UploadBlob(chunks(TAR))
        for name in ("AppendPool", "DeletePool"):
            with pytest.raises(grpc.RpcError) as refused:
                ASKED[name](fourth, world.theirs)
            assert reason(refused.value)[0] == "POOL_NOT_FOUND"
    finally:
        accounts_server.command("pool", "unshare", "web")
    assert fourth.pools.ListPools(pool_pb2.ListPoolsRequest()).pools == []
    with pytest.raises(grpc.RpcError):
        fourth.pools.GetPool(pool_pb2.GetPoolRequest(name="web"))
