"""A whole round in one process: real client and server sessions, with whatever schedule of dropouts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
