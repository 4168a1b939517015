"""What the processes of probes are forked with: the libraries, imported in silence."""

from ...terminal.console import quiet_libraries

quiet_libraries()

from ....tuning import reporter  # noqa: E402, F401
from ..train import assembly  # noqa: E402, F401
from . import probe  # noqa: E402, F401
