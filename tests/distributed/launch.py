"""Start the processes of a test, and read what they found.

A launch cannot hang: after ``LIMIT_S`` each process prints where each of its threads stands, and ends.
"""

import faulthandler
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.command import Outcome, environment
from tests.forked import fork_all, free_port, rank_environment, run_module

LIMIT_S = 180.0  # of a launch


def launch(
    folder: Path, cases: dict[str, dict[str, Any]], processes: int = 2, *, nodes: Sequence[int] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Live cases one after the other in so many processes; return what each process found, by case and rank.

    ``nodes``: that of each process; the disk of a node is the folder ``CASE/node-NUMBER``.
    """
    folder.mkdir(parents=True)
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    codes = _run(folder / "log", "tests.distributed.worker", [str(folder)], processes, nodes=nodes)
    assert codes == [0] * processes, _ends(folder)
    return {
        name: [json.loads((folder / name / f"rank-{rank}.json").read_bytes()) for rank in range(processes)]
        for name in cases
    }


def command(folder: Path, *words: object, processes: int = 2) -> list[Outcome]:
    """Run the command in so many processes, as a launcher does."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = _run(folder / "log", "tests.distributed.command", list(map(str, words)), processes)
    texts = [
        [(folder / f"log-{rank}.{kind}").read_text(encoding="utf-8") for kind in ("out", "err")]
        for rank in range(processes)
    ]
    return [Outcome(code, *text) for code, text in zip(codes, texts, strict=True)]


def _run(
    log: Path,
    module: str,
    words: list[str],
    processes: int,
    limit_s: float = LIMIT_S,
    *,
    nodes: Sequence[int] | None = None,
) -> list[int]:
    port = free_port()
    environments = [environment() | rank_environment(rank, processes, port) for rank in range(processes)]
    if processes == 1 and module.endswith("worker"):  # as torchrun does: accelerate shards only with a rank
        environments[0] |= rank_environment(0, 2, port) | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for rank, node in enumerate(nodes or ()):
        local = {"LOCAL_RANK": nodes[:rank].count(node), "LOCAL_WORLD_SIZE": nodes.count(node)}
        environments[rank] |= {name: str(number) for name, number in local.items()} | {"NODE_DISK": f"node-{node}"}
    return fork_all(partial(_run_limited, limit_s, module, *words), environments, log, timeout_s=limit_s + 10)


def _run_limited(limit_s: float, module: str, *words: str) -> None:
    faulthandler.dump_traceback_later(limit_s, exit=True)
    run_module(module, *words)
    faulthandler.cancel_dump_traceback_later()


def _ends(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8")[-3000:] for path in sorted(folder.glob("log-*.err")))
