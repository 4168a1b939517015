"""The types of the public names, as mypy --strict reads them in a user's script."""

import os
import re
import subprocess
import sys

import pytest

from tests.docs_blocks import ROOT

RIGHT = """
from oddsmith import (
    ConfigError,
    ModelConfig,
    OddsmithError,
    ORPOConfig,
    ORPOTrainer,
    PairLosses,
    PairTokens,
    ScriptArguments,
    StopOnRequest,
    get_peft_config,
    get_quantization_config,
    trainer_from_recipe,
)


class LongerMargin(ORPOTrainer):
    def pair_losses(self, pairs: PairTokens) -> PairLosses:
        return super().pair_losses(pairs)


def train(pairs: list[dict[str, str]]) -> float:
    model = ModelConfig(model_name_or_path="m", use_peft=True, lora_r=8)
    args = ORPOConfig(output_dir="run", beta=0.2, learning_rate=1e-5)
    trainer = ORPOTrainer("m", args, train_dataset=pairs, peft_config=get_peft_config(model))
    try:
        trainer.train()
    except ConfigError as error:
        print(error.exit_code)
    except OddsmithError as error:
        raise SystemExit(error.exit_code) from error
    get_quantization_config(model)
    trainer_from_recipe("recipe.yaml").train()
    ScriptArguments(dataset_name="pairs.jsonl")
    StopOnRequest(3600)
    return args.beta
"""

# Each line, and what is found in it.
WRONG = {
    'ORPOConfig(output_dir="run", bta=0.2)': 'Unexpected keyword argument "bta" for "ORPOConfig"; did you mean "beta"?',
    'ORPOConfig(output_dir="run", beta="much")': 'Argument "beta" to "ORPOConfig" has incompatible type "str"',
    'ORPOConfig(output_dir="run", learning_rte=1e-5)': 'Unexpected keyword argument "learning_rte" for "ORPOConfig"',
    'ModelConfig(lora_rank=8)': 'Unexpected keyword argument "lora_rank" for "ModelConfig"',
    'ScriptArguments(dataset="pairs.jsonl")': 'Unexpected keyword argument "dataset" for "ScriptArguments"',
    'ORPOTrainer("m", bta=0.2)': 'Unexpected keyword argument "bta" for "ORPOTrainer"',
    "ORPOTrainer.trian": '"type[ORPOTrainer]" has no attribute "trian"',
    "oddsmith.ORPOTrainr": 'Module has no attribute "ORPOTrainr"',
}  # fmt: skip


@pytest.mark.slow
def test_a_strict_check_of_a_users_script_finds_its_faults_alone(tmp_path):
    """Half a minute: mypy reads torch and transformers."""
    (tmp_path / "right.py").write_text(RIGHT)
    lines = ["import oddsmith", "from oddsmith import ModelConfig, ORPOConfig, ORPOTrainer, ScriptArguments", *WRONG]
    (tmp_path / "wrong.py").write_text("\n".join(lines))
    words = [
        "--strict",
        "--follow-imports=silent",
        "--hide-error-codes",
        "--cache-dir",
        "cache",
        "right.py",
        "wrong.py",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=230,
    )  # fmt: skip
    found = re.findall(r"^(\w+)\.py:(\d+): error: (.*)$", done.stdout, flags=re.MULTILINE)
    assert [(file, int(line)) for file, line, _ in found] == [("wrong", 3 + place) for place in range(len(WRONG))], done
    for (_, _, message), expected in zip(found, WRONG.values(), strict=True):
        assert message.startswith(expected)


def test_the_package_says_that_it_has_types():
    """Without this file mypy takes every name of an installed package for Any."""
    assert (ROOT / "src" / "oddsmith" / "py.typed").read_text() == ""
