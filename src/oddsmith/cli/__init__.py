"""The command line. On Windows it ends here, before a module is loaded that needs POSIX."""

import sys

from .. import NOT_ON_WINDOWS

if sys.platform == "win32":
    sys.exit(f"error: {NOT_ON_WINDOWS}")
