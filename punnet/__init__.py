"""Client of the Punnet compression appliance."""

from punnet.aio import AsyncClient
from punnet.client import Client
from punnet.errors import PunnetError
from punnet.job import Job, JobResult

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Job", "JobResult", "PunnetError", "__version__"]
