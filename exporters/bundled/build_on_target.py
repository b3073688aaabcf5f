"""Build this bundle's engines on this device, check and time them: `python build_on_target.py [--help]`.

Needs TensorRT or TensorRT-RTX (README.md says which), and NumPy. What it makes goes to the folder `engines`.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # `python -I` leaves the program's folder out

from exporters.device_build import main  # noqa: E402

raise SystemExit(main([str(HERE), *sys.argv[1:]]))
