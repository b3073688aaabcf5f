"""What a client does, with the wheel alone: `python -I client_smoke.py ADDRESS POOL.tar NAME FOLDER`.

Runs on every Python that the client supports, in an environment that has nothing else; prints one JSON line.
"""

import asyncio
import json
import platform
import resource
import sys
import time

started = time.perf_counter()
import punnet  # noqa: E402 - its import is timed
from punnet.errors import NotFound  # noqa: E402

import_seconds = time.perf_counter() - started
HEAVY = {"numpy", "torch", "onnx", "server", "pu_engine", "exporters"}


async def listed(address: str) -> int:
    """How many jobs the other client sees."""
    async with punnet.AsyncClient(address) as client:
        return len(await client.jobs())


def main() -> int:
    """Make a pool, look at it, fetch its page, see an error come back typed."""
    address, tar, name, folder = sys.argv[1:]
    with punnet.Client(address) as client:
        client.create_pool(name, [tar], request_id=name).wait()
        page = client.describe_pool(name)
        updates = [update.WhichOneof("update") for update in client.watch(page.id)]
        files = sorted(path.name for path in client.download(page.id, folder))
        images = client.pool(name).images
        try:
            client.job("0" * 32)
        except NotFound as error:
            refused = error.code
        server = client.capabilities().version
    found = {
        "python": platform.python_version(),
        "import_seconds": round(import_seconds, 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "images": images,
        "files": files,
        "watched": updates[0] == "snapshot" and "event" in updates,
        "refused": refused,
        "jobs": asyncio.run(listed(address)),
        "same_version": server == punnet.__version__,
        "heavy": sorted(HEAVY & set(sys.modules)),
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
