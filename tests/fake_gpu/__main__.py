"""List what each case of a step launches: ``python -m tests.fake_gpu [PART OF A NAME ...] [--table]``."""

from __future__ import annotations

import argparse

from .steps import CASES, run_case


def table(title: str, groups: list[tuple[str, int, int, int]], most: int) -> str:
    """Return groups of a record as text."""
    lines = [f"  {title:72s} {'launches':>8s} {'MB':>10s} {'GFLOP':>10s}"]
    lines += [
        f"  {key[:72]:72s} {n:8d} {moved / 1e6:10.3f} {flops / 1e9:10.3f}" for key, n, moved, flops in groups[:most]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names of cases; all by default")
    parser.add_argument("--table", action="store_true", help="list launches by place in the code and by operation")
    parser.add_argument("--top", type=int, default=25, help="rows of a table (25)")
    options = parser.parse_args()
    for name, case in CASES.items():
        if options.names and not any(part in name for part in options.names):
            continue
        with run_case(case) as result:
            record = result.record
            launches, moved, flops = record.total()
            print(f"{name:42s} {launches:5d} launches {moved / 1e6:8.1f} MB {flops / 1e9:7.2f} GFLOP")
            for what, found in (
                ("attention", record.attention),
                ("waits", record.waits),
                ("waiting copies", record.waiting_copies),
                ("faults", result.faults),
            ):
                if found:
                    print(f"  {what}: {found}")
            if options.table:
                print(table("place", record.by_place(), options.top))
                print(table("operation", record.by_operation(), options.top))


if __name__ == "__main__":
    main()
