"""`python -m cwmp`, and `python …/cwmp/__main__.py`, which is how our launchers start processes.

By its path rather than with -m, because -m puts the working directory first on the module path,
where a user's `queue.py` or `types.py` would be taken for the standard library's.
"""

import os
import sys

if not __package__:  # run by its path: then the first entry is this package's own directory
    _root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:1] = [] if _root in sys.path else [_root]

from cwmp.cli import main

if __name__ == "__main__":
    sys.exit(main())
