"""An older name of `daskinfer.testing.models.tinymodels`, kept for one release."""

import sys

from daskinfer.testing.models import tinymodels

sys.modules[__name__] = tinymodels
