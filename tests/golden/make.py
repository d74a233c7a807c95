"""Record the golden files anew: `python tests/golden/make.py`. It overwrites all of them.

Do so only where a change of the figures is meant, and say in the commit which and why.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.test_golden import record

if __name__ == "__main__":
    record()
