"""Client of the Punnet compression appliance."""

from punnet.errors import PunnetError

__version__ = "0.1.0"
__all__ = ["PunnetError", "__version__"]
