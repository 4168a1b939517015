"""A mistake is answered before torch is imported, and so is a question to a GGUF file."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.bad_inputs import GROUPS
from tests.bad_inputs.case import BadInput
from tests.command import run_apart, save_model
from tests.integration.test_bad_inputs import pattern
from tests.light import HEAVY, run_light
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf

# Groups of mistakes that are seen in settings, paths and first rows, and what of them takes more than that.
SEEN_EARLY = {
    "The file of settings": {"misspells a model's option"},  # the model's class says which there are
    "Flags": {"shards on a CPU", "shards on a CPU, and tries it first"},  # torch says which devices there are
    "Settings that make no sense": {"holds out more than there is"},  # all rows are counted
    "The run folder": set(),
    "Datasets": {"names a dataset of the hub, without a connection"},  # read by `datasets`, which imports torch
    "Files of pairs": set(),
    "Mixtures, splits and evaluation": {"slices beyond the end"},  # all rows are counted
    "The other commands": {
        "goes on in a log of something else",  # compared with the weights of the model
        "lets a model judge that writes",
        "asks for an unknown type",
    },
}
EARLY = [case for group, late in SEEN_EARLY.items() for case in GROUPS[group] if case.done not in late]
# One of every kind, for the quick tests.
FEW = (
    *("misspells a setting", "misspells a flag", "gives a text for a number", "sets the learning rate to 0"),
    *("quantises without an adapter", "takes an optimiser that is not installed", "reports to what is no tracker"),
    *("misspells the file", "evaluates on rows that are no pairs", "damages a Parquet file"),
    *("names a part that is not there", "measures a model that is not there", "exports a run that is not there"),
    *("compares on a file that is not there", "asks for an unknown quantisation", "checks a file that is not there"),
    *("lets a model answer that is not there", "holds out a share above 1", "has no patience"),
)


def answered(cases: list[BadInput], folder: Path) -> None:
    model = save_model(folder / "model")
    (model / "model.safetensors").write_bytes(b"no weights")
    asked = []
    for number, case in enumerate(cases):
        place = folder / str(number)
        place.mkdir()
        case.lay_out(place, model)
        asked.append((place, shlex.split(case.words), case.without))
    for case, answer in zip(cases, run_light(asked), strict=True):
        assert answer["heavy"] is None, f"{case.done}: imports {answer['heavy']}"
        said = answer["err"].splitlines()[-2 if case.flags else -1]
        assert re.fullmatch(pattern(f"error: {case.message}"), said), f"{case.done}: {said}"
        assert answer["code"] == case.code


def test_a_mistake_is_answered_without_torch(tmp_path):
    cases = [case for case in EARLY if case.done in FEW]
    assert {case.done for case in cases} == set(FEW)
    answered(cases, tmp_path)


@pytest.mark.slow
def test_every_mistake_that_can_be_seen_early_is_answered_without_torch(tmp_path):
    assert len(EARLY) >= 200
    answered(EARLY, tmp_path)


def test_a_model_of_the_hub_that_is_not_there_is_named_without_torch(tmp_path):
    (answer,) = run_light([(tmp_path, ["chat", "someone/no-such-model", "--prompt", "Hi"], ())])
    assert answer["heavy"] is None
    assert answer["err"].startswith("error: someone/no-such-model: is no folder here, and the hub cannot be reached")


def test_a_gguf_file_answers_without_torch(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_model(vocab_size=258), tiny_tokenizer(), merges=["Ā ā"])
    code = (
        "import atexit, sys\n"
        "from oddsmith.cli.main import main\n"
        f"atexit.register(lambda: print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr))\n"
        f"main(['chat', {str(file)!r}, '--prompt', 'Hi', '--max-new-tokens', '2', '--json'])\n"
    )
    done = run_apart(start=[sys.executable, "-c", code])
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1] == "LOADED ['transformers']"  # of which the chat templates alone
