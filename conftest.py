"""Before any test imports torch: threads that wait must not spin (see mmzero.py)."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
