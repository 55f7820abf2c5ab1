"""An older name of `daskinfer.runtime.cluster.forking`, kept for one release: commands of clusters may name it."""

import sys

from daskinfer.runtime.cluster import forking

sys.modules[__name__] = forking
