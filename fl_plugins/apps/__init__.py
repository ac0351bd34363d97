"""The ready-made Flower App: everything it runs is chosen by name in the run config."""

# Flower imports a run's two apps in two threads at once. The package comes first, and as a whole: a thread
# that enters it by one of its modules holds that module's lock meanwhile, and two such threads wait for each
# other.
from .. import aggregation as aggregation
