"""Exit with a clear message on Windows, before a module is imported that needs POSIX."""

import sys

from .. import NOT_ON_WINDOWS

if sys.platform == "win32":
    sys.exit(f"error: {NOT_ON_WINDOWS}")
