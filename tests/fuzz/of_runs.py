"""Run folders and logs, ours and other trainers': the event log, the page, the diagnosis."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from oddsmith.cli.commands.diagnose import sparklines
from oddsmith.diagnose.readers import history_of_events, read_history
from oddsmith.diagnose.rules import judge
from oddsmith.errors import DataError
from oddsmith.monitor.run import Run
from oddsmith.monitor.runs import Runs
from oddsmith.system.run_folder import read_events
from oddsmith.system.strict_json import strict
from oddsmith.training.card import card_names
from oddsmith.training.card_record import CardRecord
from tests.cards import HOSTILE, SOUND, require_plain
from tests.fuzz.answers import answered, require_json
from tests.fuzz.material import TEXTS, damaged
from tests.fuzz.target import Target, folder

EVERYTHING = (None, None, -math.inf, math.inf)
HISTORIES = Path(__file__).parent.parent / "histories"


def _event_log(steps: int) -> bytes:
    """A run as ``events.jsonl`` has it."""
    settings = {"beta": 0.1, "learning_rate": 1e-5}
    lines: list[dict] = [{"event": "start", "step": 0, "max_steps": steps, "model": "m", "settings": settings}]
    for step in range(1, steps + 1):
        figures = {"loss": 2 / step, "nll_loss": 1.9 / step, "grad_norm": 1.0, "rewards/chosen": -0.1 / step}
        lines.append({"event": "log", "step": step, **figures, "logps/chosen": -1 / step, "log_odds_chosen": 0.1})
    margins = {"edges": [-1, 0, 1], "counts": [3, 4]}
    odds = {"mean": 0.1, "deviation": 1.0, "pairs": 7}
    lines += [
        {"event": "evaluate", "step": steps, "eval_loss": 1.0, "eval_anchor_nll_loss": 2.0},
        {"event": "pairs", "step": steps, "set": "", "margins": margins, "below_zero": 0.4, "log_odds": odds},
        {"event": "samples", "step": steps, "set": "x", "answers": [{"Prompt": "p", "Policy": "a"}]},
        {"event": "finding", "step": steps, "rule": "margin_flat"},
        {"event": "checkpoint", "step": steps, "path": f"checkpoint-{steps}"},
        {"event": "end", "step": steps},
    ]
    return b"".join(json.dumps({**line, "time": 1e9 + line["step"]}).encode() + b"\n" for line in lines)


EVENT_LOGS = [_event_log(3), _event_log(12), _event_log(2) + _event_log(3)]
_SIDE = {"tokens": ["a", "b"], "change": [0.1, None]}
_PAIR = {"row": 1, "margin": 0.1, "before": None, "prompt": "p", "chosen": _SIDE, "rejected": _SIDE}
_SET = {"step": 3, "lengths": [[1, 2.0]], "inspected": {"worst": [_PAIR], "flipped": [], "forgotten": []}}
PAIRS = [json.dumps({"sets": {"eval": _SET, "": _SET}}).encode()]
SETTINGS = [b"# Oddsmith\nbeta: 0.1  # run.yaml:1\nmodel_name_or_path: m\nhub_token: null\n"]


def read_run(given: tuple[bytes, bytes, bytes, int]) -> None:
    """A run folder is shown, whether it is read at once or while it grows."""
    events, pairs, settings, half = given
    with folder() as place:
        (place / "_held_out_pairs.json").write_bytes(pairs)
        (place / "run.yaml").write_bytes(settings)
        (place / "events.jsonl").write_bytes(events[: len(events) * half // 4])
        with answered(DataError):
            growing = Run(place)
            growing.refresh()
            (place / "events.jsonl").write_bytes(events)
            growing.refresh()
            runs = Runs([place])
            require_json([runs.summaries(), *(shown(run) for run in runs.all())])
            require_json(shown(growing))
            assert events not in EVENT_LOGS or curves(growing) == curves(runs.all()[0])
        with answered(DataError):
            require_json(strict(read_events(place)))
        read_log(place)


def shown(run: Run) -> list[object]:
    """All that the page asks for."""
    return [run.summary(), run.series(*EVERYTHING), run.details()]


def curves(run: Run) -> list[object]:
    """What does not depend on when it was read."""
    found = run.series(*EVERYTHING)
    return [found["training"], found["held_out"]]


_STATE = {
    "global_step": 20,
    "max_steps": 40,
    "log_history": [{"step": 10, "loss": 2.0, "nll_loss": None}, {"step": 20, "eval_loss": 1.0, "loss": "nan"}],
}
LOGS = {
    "train.log": [
        (HISTORIES / "trl-console.log").read_bytes()[:6_000],
        b"{'loss': 1.54, 'grad_norm': 0.91, 'rewards/chosen': -0.11,\n 'nll_loss': nan, 'epoch': 0.18}\n" * 3,
        b"  3%|#         | 10/400 [00:31<20:11]\r{'loss': 0.9, 'global_step/max_steps': '5/100'}\n",
        b"Step\tTraining Loss\trewards / chosen\tnll_loss\n1\t2.19\t-0.12\t2.1\n2\t2.10\t-0.11\tNo Log\n",
        b"| Step | Training Loss | Validation Loss |\n| 50 | 0.69 | 0.70 |\n",
        b"step 10/200  5%  loss 2.314  nll 2.201  or 0.712  accuracy 55%  margin -0.012\n",
        b"[rank0]: step: 10, loss: 1.5, lr: 1E-05\n{'loss': np.float64(1.5), 'epoch': tensor(0.1, device='cuda:0')}\n",
        b"Epoch 1: 50%|#  | 5/10 [00:01<00:09, 1it/s, loss=1.2]\r[ 6/12 00:30 < 00:31, 1.9 it/s, Epoch 0.50/1]\n",
        b"Epoch Step Training Loss Validation Loss\n0.1 50 No log 0.70\n<table><tr><td>1</td></tr></table>\n",
        "Num Epochs = 1 | Total steps = 1,250\n{'loss': '1,000', 'step': '1,000'}\n".encode("utf-16"),
    ],
    "trainer_log.jsonl": [
        b'{"current_steps": 10, "total_steps": 37, "loss": 9.2, "accuracy": 0.575, "lr": null}\n' * 4
    ],
    "notebook.ipynb": [
        b'{"cells": [{"outputs": [{"data": {"text/html": ["<tr><th>Step</th><th>Training Loss</th></tr>"]}}]}]}'
    ],
    "trainer_state.json": [json.dumps(_STATE).encode(), json.dumps(_STATE, indent=2).encode()],
    "chart.csv": [
        b'"Step","a - train/loss","a - train/loss__MIN","b - train/loss"\n"0","1.64","1.64","9"\n"1","1.6","1.6","9"\n',
        b"_step,_runtime,train/loss,eval/loss,train/global_step\n0,3.1,2.5,,10\n1,6.0,NaN,,20\n2,9.0,,2.2,20\n",
    ],
    "run-tag-train_loss.csv": [b"Wall time,Step,Value\n1654943296.2,10,0.5\n1654943297.2,20,0.4\n"],
}


@st.composite
def logs(draw: st.DrawFn) -> tuple[str, bytes]:
    """Name and content of a log; now and then under the name of another kind."""
    name = draw(st.sampled_from(sorted(LOGS)))
    content = draw(damaged(LOGS[name]))
    return draw(st.sampled_from([name, name, name, *sorted(LOGS), "a.txt", "events.jsonl"])), content


def read_log_file(given: tuple[str, bytes]) -> None:
    """A log of any trainer is diagnosed, by itself and in its folder."""
    name, content = given
    with folder() as place:
        (place / name).write_bytes(content)
        read_log(place / name)
        read_log(place)
        with answered(DataError):
            require_json(Runs([place / name]).summaries())


def read_log(path: Path) -> None:
    """What ``oddsmith diagnose`` does with a path."""
    with answered(DataError):
        history = read_history(path)
        require_json([finding.to_dict() for finding in judge(history)])
        sparklines(history)


CARD_LOGS = [b"".join(json.dumps(event).encode() + b"\n" for event in SOUND), *EVENT_LOGS]
CARDS = [
    b"---\nbase_model: org/base\ndatasets:\n- org/pairs\ntags:\n- orpo\n---\n\n# x\n",
    b"---\nbase_model:\n- a/b\nmodel-index:\n- name: x\n  results: []\n---\n",
]


WORDS = (b"0.1", b'"train"', b'"same"', b'"chosen"', b'"LoRA"', b'"bf16"', b'"beta"', b'"eval_')


@st.composite
def card_logs(draw: st.DrawFn) -> bytes:
    """An event log with faults in it, or with a text in it that would be markup."""
    content = draw(damaged(CARD_LOGS))
    for _ in range(draw(st.integers(0, 2))):
        word = draw(
            st.sampled_from([b"0.1", b'"train"', b'"same"', b'"chosen"', b'"LoRA"', b'"bf16"', b'"beta"', b'"eval_'])
        )
        text = json.dumps(draw(st.sampled_from(HOSTILE) | TEXTS)).encode()
        content = content.replace(word, text[:-1] + b"_" if word.endswith(b"_") else text)
    return content


def make_card(given: tuple[bytes, bytes]) -> None:
    """The model card of a run is made, and shows what the run says as text."""
    events, card = given
    with folder() as place, _without_warnings(), answered():
        (place / "events.jsonl").write_bytes(events)
        (place / "README.md").write_bytes(card)
        base, datasets = card_names(place)
        assert all(isinstance(name, str) for name in [base or "", *datasets])
        found = read_events(place)
        CardRecord.of_run(place)
        require_plain(found, base=base)
        history_of_events(found)


@contextmanager
def _without_warnings() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


RUNS = st.tuples(damaged(EVENT_LOGS), damaged(PAIRS, 2), damaged(SETTINGS, 2), st.integers(0, 4))
TARGETS = {
    "run folders": Target(RUNS, read_run),
    "logs": Target(logs(), read_log_file),
    "model cards": Target(st.tuples(card_logs(), damaged(CARDS)), make_card),
}
