"""Before any test imports torch: threads that wait must not spin for ever (see mmzero.py)."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "20000")
