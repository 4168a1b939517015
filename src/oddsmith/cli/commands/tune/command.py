"""``oddsmith tune``: search settings by short trainings, and write the recipe that won."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....checkpoint.lock import held, is_lock_file
from ....diagnose.findings import Verdict
from ....errors import ConfigError, Interrupted
from ....system.files import replacing
from ....system.launchers import join_processes
from ....system.names import require_folder_name
from ....system.output import printing_may_fail
from ....system.outside import read_text
from ....system.secrets import masked
from ....system.strict_json import read_object
from ....tuning.space import SEARCHABLE, Space, default_space, parse_search
from ...parsing.first_look import first_look
from ...parsing.resolve import TYPED_ONLY, Option, Resolved, resolve
from ...parsing.schema import fields_for_run
from ...parsing.values import from_flag, seconds_of, whole_number
from ...terminal.console import quiet_libraries, say
from ...terminal.outcome import JSON, TRACEBACK, Judged, termination_as_interruption
from ..train.command import require_names

if TYPE_CHECKING:
    from ....tuning.results import Result
    from ....tuning.search import Found, Limits, Probe
    from ...terminal.tune_table import Progress

USAGE = "oddsmith tune RECIPE.yaml [--search NAME=VALUES ...] [--budget 20m | --trials N] [--any-setting VALUE ...]"
INTRO = (
    "Searches learning rate and beta, or other settings by name, with short trainings (probes): each is judged on the"
    " same held-out pairs by log-odds, NLL and diagnosis, against the recipe's own settings, which are the first probe."
    " It stops early when nothing can win any more, writes the recipe that won, and says where a difference is noise.",
    "Interrupted, it goes on with the same command. docs/tune.md says how probes are judged.",
)
TRIALS, STEPS, FEWEST_STEPS = 12, 50, 10
OPTIONS = (
    Option(
        "search",
        "value",
        "What to search, once for each setting: learning_rate=1e-6:1e-4:log, beta=0.05,0.1,0.5. [learning rates from a"
        " tenth of the recipe's to ten times it; beta 0.05, 0.1, 0.25, 0.5]",
        "NAME=VALUES",
    ),
    Option("budget", "value", "Time for all probes together: 20m, 1h30m, ...", "TIME"),
    Option("trials", "value", f"At most so many probes. [{TRIALS} without --budget]", "N"),
    Option("steps", "value", f"Steps of a probe, at most those of the run. [{STEPS}]", "N"),
    Option("output", "value", "Folder of the probes and the result. [output_dir-tune]", "FOLDER"),
    JSON,
    TRACEBACK,
)
SETTINGS_IN_HELP = ("model_name_or_path", "dataset_name", "eval_dataset_name", "test_split_size")
SEARCH_FILE, RECIPE_FILE, PICTURE_FILE = "tune.json", "recipe.yaml", "tune.svg"
NOTHING_WON = 3  # exit code


def tune(arguments: Sequence[str]) -> Judged:
    """Run ``oddsmith tune``; return the probes and the decision, with exit code 3 where no probe can win."""
    quiet_libraries()
    resolved = resolve(arguments, fields_for_run(), OPTIONS)
    if join_processes() > 1:
        raise ConfigError("oddsmith tune starts its own processes; start it without a launcher")
    require_names(resolved)
    given = resolved.options
    space = _space(resolved)
    steps = whole_number(given, "steps", STEPS, minimum=FEWEST_STEPS)
    limits = _limits(given)
    folder = _folder(resolved)
    from ....tuning.sampling import require_optuna

    require_optuna()
    first_look(resolved)
    resolved.tell()
    with printing_may_fail(), held(folder):
        _require_same_search(folder, resolved, space, steps)
        again = masked(shlex.join(["oddsmith", "tune", *arguments]))
        try:
            with termination_as_interruption():
                found = _search(resolved, space, steps, limits, folder)
        except KeyboardInterrupt:
            raise Interrupted(f"the probes that are done are kept in {folder}; go on with: {again}") from None
        return _finish(found, resolved, space, folder, as_json="json" in given)


def _space(resolved: Resolved) -> Space:
    """Return what ``--search`` names, or the usual."""
    fields = resolved.fields

    def read(name: str, text: str) -> Any:
        if name not in SEARCHABLE:
            raise ConfigError(f"--search {name}: expected one of {', '.join(SEARCHABLE)}")
        return from_flag(fields[name], [text], f"--search {name}")

    def is_whole(name: str) -> bool:
        return "float" not in fields[name].types

    texts = resolved.repeated.get("search", [])
    if not texts:
        own = {name: resolved.get(name) for name in ("learning_rate", "beta")}
        if own["learning_rate"] <= 0:
            raise ConfigError(f"learning_rate is {own['learning_rate']}; give the rates to try with --search")
        return default_space(own)
    space: dict[str, Any] = {}
    for text in texts:
        name, part = parse_search(text, read, is_whole)
        if name in space:
            raise ConfigError(f"--search {name} is given twice; give all its values at once")
        space[name] = part
    return space


def _limits(given: Mapping[str, str]) -> Limits:
    from ....tuning.search import Limits

    seconds = seconds_of(given["budget"], "--budget") if "budget" in given else None
    probes = whole_number(given, "trials", TRIALS, minimum=2) if "trials" in given or seconds is None else None
    return Limits(probes, seconds)


def _folder(resolved: Resolved) -> Path:
    own = Path(str(resolved.get("output_dir")))
    name = resolved.options.get("output") or str(own.with_name(f"{own.name}-tune"))
    require_folder_name(name, "--output")
    folder = Path(name).expanduser()
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if there.exists() and not there.is_dir():
        raise ConfigError(f"--output {folder}: {there} is a file; expected a folder, or the name of a new one")
    if folder.is_dir() and not (folder / SEARCH_FILE).is_file() and not all(map(is_lock_file, folder.iterdir())):
        raise ConfigError(f"--output {folder}: is not empty and holds no search ({SEARCH_FILE}); choose another folder")
    return folder


def _require_same_search(folder: Path, resolved: Resolved, space: Space, steps: int) -> None:
    """Write down what is searched, or refuse to go on with another search."""
    from ....tuning.results import has_results

    facts: dict[str, str] = {name: f"searched: {part}" for name, part in space.items()}
    facts["--steps"] = str(steps)
    for name, setting in resolved.settings.items():
        if name not in space and name != "output_dir":
            facts[name] = hashlib.sha256(json.dumps(setting.value, sort_keys=True).encode()).hexdigest()[:16]
    facts |= {f"own {name}": json.dumps(resolved.get(name)) for name in space}
    file = folder / SEARCH_FILE
    if not (file.exists() and has_results(folder)):  # nothing was searched: the recipe itself had a fault
        with replacing(file) as partial:
            partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return
    try:
        there = read_object(read_text(file, follow=False))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read; remove {folder}, or choose another --output") from error
    other = sorted(name for name in {*there, *facts} if there.get(name) != facts.get(name))
    if other:
        raise ConfigError(
            f"--output {folder} holds another search: {', '.join(other)} {'is' if len(other) == 1 else 'are'} not the"
            " same; choose another folder, or remove it"
        )


def _search(resolved: Resolved, space: Space, steps: int, limits: Limits, folder: Path) -> Found:
    from ....tuning.search import Search
    from ...terminal.tune_table import Progress

    own = {name: resolved.get(name) for name in space}
    task = {
        "settings": {name: [setting.value, setting.where] for name, setting in resolved.settings.items()},
        "searched": list(space),
        "steps": steps,
        "holds_out": _holds_out(resolved),
    }
    say(f"held-out pairs: {_held_out(resolved)}")
    for name, part in space.items():
        outside = "" if own[name] in part else f" (the recipe's own {own[name]} is tried beside them)"
        say(f"{name}: {part}{outside}")
    with Progress(list(space)) as progress:
        probes = _Probes(task, space, own, _held_out(resolved), progress)
        return Search(folder, space, own, int(resolved.get("seed")), limits, probes.train, progress).run()


class _Probes:
    """Makes probes in processes of their own."""

    def __init__(self, task: dict[str, Any], space: Space, own: Mapping[str, Any], held_out: str, progress: Progress):
        self._task, self._space, self._own = task, space, own
        self._held_out, self._progress = held_out, progress

    def train(self, probe: Probe, folder: Path, may_go_on: Any) -> Result:
        """Make a probe; ``ConfigError`` where the recipe itself, or a value that would be tried, is refused."""
        from ....tuning.channel import Ended, Steps, converse
        from ....tuning.results import FIRST, LOG_FILE, Evaluation, State, result_of
        from .probe import PRELOADED, make_probe

        evaluations: list[Evaluation] = []

        def answer(message: Any) -> bool | None:
            if isinstance(message, Steps):
                self._progress.step(*message)
            if not isinstance(message, Evaluation):
                return None
            evaluations.append(message)
            return bool(may_go_on(evaluations))

        is_first = probe.name == FIRST
        task = self._task | {"folder": str(folder), "seed": probe.seed, "values": dict(probe.values), "checks": []}
        if is_first:
            task["checks"] = [
                dict(self._own) | {name: end} for name, part in self._space.items() for end in part.corners
            ]
        started_at = time.monotonic()
        last = converse(make_probe, task, folder / LOG_FILE, answer, PRELOADED)
        facts = {
            "name": probe.name,
            "values": dict(probe.values),
            "seed": probe.seed,
            "held_out": self._held_out,
            "seconds": time.monotonic() - started_at,
        }
        if isinstance(last, dict) and "error" not in last:
            return result_of({"error": "", **last, **facts})
        failed = last if isinstance(last, dict) else {"error": last.how if isinstance(last, Ended) else "ended early"}
        if is_first and failed.get("code") == ConfigError.exit_code:
            raise ConfigError(str(failed["error"]))
        return result_of(
            {
                "state": State.FAILED,
                "steps": 0,
                "steps_of_run": 0,
                "pairs": "",
                "log_odds": [],
                "logp_chosen": [],
                "evaluations": list(map(asdict, evaluations)),
                "verdict": failed.get("verdict") or Verdict.CANNOT_TELL,
                "finding": failed.get("finding", ""),
                "error": failed["error"],
                **facts,
            }
        )


def _holds_out(resolved: Resolved) -> bool:
    """Return whether the recipe names nothing to evaluate on, so that rows are held out for the probes."""
    names = resolved.get("eval_dataset_name"), resolved.get("test_split_size")
    return names == (None, None) and str(resolved.get("eval_strategy")) == "no"


def _held_out(resolved: Resolved) -> str:
    """Say where the held-out pairs come from."""
    from .probe import MOST_HELD_OUT

    if _holds_out(resolved) and resolved.get("dataset_streaming"):
        return f"the first {MOST_HELD_OUT} rows of the stream, as the recipe names none"
    if _holds_out(resolved):
        return "a fifth of the training pairs, drawn by the seed, as the recipe names none"
    if resolved.get("test_split_size") is not None:
        return f"the recipe's test_split_size, {resolved.get('test_split_size')}"
    if resolved.get("eval_dataset_name") is not None:
        return f"the recipe's eval_dataset_name, {resolved.get('eval_dataset_name')}"
    return f"the split {resolved.get('dataset_test_split')!r} of {resolved.get('dataset_name')}"


def _finish(found: Found, resolved: Resolved, space: Space, folder: Path, *, as_json: bool) -> Judged:
    """Write recipe and picture, and print the outcome."""
    from ....tuning.picture import picture
    from ....tuning.verdict import in_words
    from ...terminal.tune_table import document_of, print_found
    from .recipe_text import recipe_text

    words = in_words(found)
    files = {"picture": folder / PICTURE_FILE}
    texts = {"picture": picture(found, space)}
    if found.decision.winner is not None:
        files["recipe"] = folder / RECIPE_FILE
        settings = {name: given for name, given in resolved.settings.items() if name != TYPED_ONLY}
        texts["recipe"] = recipe_text(settings, found, words)
    for name, file in files.items():
        with replacing(file) as partial:
            partial.write_text(texts[name], encoding="utf-8")
    following = f"oddsmith train {shlex.quote(str(files['recipe']))}" if "recipe" in files else None
    if not as_json:
        print_found(found, list(space), words, {name: str(file) for name, file in files.items()}, following)
    document = document_of(found, words) | {"files": {name: str(file) for name, file in files.items()}}
    return Judged({"command": "tune", **document, "next": following}, 0 if "recipe" in files else NOTHING_WON)
