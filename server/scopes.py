"""What each method asks of a token. A method that is not in the table is refused."""

from __future__ import annotations

from collections.abc import Collection

# Load balancers and probes have no token; this tells them nothing but whether the server serves, and ends at once.
OPEN_METHODS = ("/grpc.health.v1.Health/Check",)

SCOPE_OF = {
    "/punnet.v1.CompressionService/Compress": "submit",
    "/punnet.v1.CompressionService/PlanCompression": "submit",
    "/punnet.v1.CompressionService/GetJob": "read",
    "/punnet.v1.CompressionService/ListJobs": "read",
    "/punnet.v1.CompressionService/WatchJob": "read",
    "/punnet.v1.CompressionService/CancelJob": "submit",
    "/punnet.v1.CompressionService/DeleteJob": "submit",
    "/punnet.v1.CompressionService/GetCapabilities": "read",
    "/punnet.v1.BlobService/FindMissingBlobs": "submit",
    "/punnet.v1.BlobService/GetUploadStatus": "submit",
    "/punnet.v1.BlobService/UploadBlob": "submit",
    "/punnet.v1.BlobService/DownloadBlob": "read",
    "/punnet.v1.PoolService/CreatePool": "submit",
    "/punnet.v1.PoolService/AppendPool": "submit",
    "/punnet.v1.PoolService/VerifyPool": "submit",
    "/punnet.v1.PoolService/DescribePool": "submit",
    "/punnet.v1.PoolService/GetPool": "read",
    "/punnet.v1.PoolService/ListPools": "read",
    "/punnet.v1.PoolService/DeletePool": "submit",
    "/punnet.v1.CatalogueService/InspectTeacher": "submit",
    "/punnet.v1.CatalogueService/ListStudents": "read",
    "/punnet.v1.BuildService/CreateBuild": "submit",
    "/punnet.v1.BuildService/LeaseBuild": "build",
    "/punnet.v1.BuildService/RenewBuild": "build",
    "/punnet.v1.BuildService/FinishBuild": "build",
    "/punnet.v1.OperatorService/CollectGarbage": "admin",  # of every tenant
    "/grpc.health.v1.Health/Watch": "read",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "read",
}

# An agent on a device fetches bundles and brings engines, and can do nothing else.
ALSO_BUILD = frozenset(
    {
        "/punnet.v1.BlobService/FindMissingBlobs",
        "/punnet.v1.BlobService/GetUploadStatus",
        "/punnet.v1.BlobService/UploadBlob",
        "/punnet.v1.BlobService/DownloadBlob",
    }
)

# These move bytes in pieces that the client chooses: they have a rate of their own beside that of all other calls.
TRANSFERS = frozenset(
    {
        "/punnet.v1.BlobService/GetUploadStatus",
        "/punnet.v1.BlobService/UploadBlob",
        "/punnet.v1.BlobService/DownloadBlob",
    }
)


def allows(method: str, scopes: Collection[str]) -> bool:
    """Whether a token with these scopes may call a method; none may call one that the table lacks."""
    return SCOPE_OF.get(method) in scopes or (method in ALSO_BUILD and "build" in scopes)


def is_open(method: str) -> bool:
    """Whether a method needs no token."""
    return method in OPEN_METHODS
