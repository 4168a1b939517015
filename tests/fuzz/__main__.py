"""Run new examples for every target in turn: ``python -m tests.fuzz --minutes 60 [TARGET ...]``.

A failure is printed with its smallest example, which is kept under ``.hypothesis`` so that the next round begins with
it. The exit code is 1 if there was one.
"""

import argparse
import faulthandler
import sys
import time
import traceback
from collections import Counter
from itertools import cycle

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.database import DirectoryBasedExampleDatabase

import tests.conftest  # noqa: F401 - no network, few threads
from oddsmith.cli.terminal.console import quiet_libraries

quiet_libraries()  # before they are imported

from tests.fuzz.of_requests import SERVERS  # noqa: E402
from tests.fuzz.targets import TARGETS  # noqa: E402

EXAMPLES_A_TURN = 300
LONGEST_EXAMPLE_S = 300  # of the clock, for what waits without computing; then the stack is printed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long [60]")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} [all]")
    given = parser.parse_args()
    unknown = set(given.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    examples: Counter[str] = Counter()
    found: set[str] = set()
    began = time.monotonic()
    for name in cycle(given.targets or TARGETS):
        if time.monotonic() - began > 60 * given.minutes:
            break
        if not _turn(name, examples):
            found.add(name)
    seconds = time.monotonic() - began
    for name, count in examples.items():
        print(f"{name:<24} {count:>10,} examples" + ("  FOUND SOMETHING" if name in found else ""))
    total = examples.total()
    print(f"{total:,} examples in {seconds / 60:.1f} min, {total / seconds:.0f} a second, {len(found)} targets failed")
    SERVERS.close()
    return 1 if found else 0


def _turn(name: str, examples: Counter[str]) -> bool:
    """Run some examples for one target, and return whether all passed."""

    def count() -> None:
        examples[name] += 1
        faulthandler.dump_traceback_later(LONGEST_EXAMPLE_S, exit=True)

    chosen = settings(
        max_examples=EXAMPLES_A_TURN,
        derandomize=False,
        deadline=None,
        database=DirectoryBasedExampleDatabase(f".hypothesis/fuzz/{name.replace(' ', '-')}"),
        suppress_health_check=list(HealthCheck),
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        verbosity=Verbosity.normal,
    )
    try:
        TARGETS[name].test(chosen, count)()
    except Exception:  # noqa: BLE001 - whatever escapes a reader is what is looked for
        print(f"== {name}", flush=True)
        traceback.print_exc()
        return False
    finally:
        faulthandler.cancel_dump_traceback_later()
    return True


if __name__ == "__main__":
    sys.exit(main())
