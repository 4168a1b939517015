"""A program of ours loads, adapts, computes and saves without a word from the libraries below it."""

import os
import subprocess
import sys

PROGRAM = """
import sys
from oddsmith.model.loading.quiet import hush_dependencies
assert not {"torch", "transformers"} & set(sys.modules)
hush_dependencies()
from peft import LoraConfig
from oddsmith.model.adapters import add_adapter
from oddsmith.model.loading.models import load_model
from tests.tiny import tiny_model
from transformers.utils import logging
logging.disable_progress_bar()
tiny_model().save_pretrained(sys.argv[1])
logging.enable_progress_bar()
model = add_adapter(load_model(sys.argv[1]), LoraConfig(target_modules="all-linear"))
model.peft_config["default"].base_model_name_or_path = "builtin:smollm2-135m-instruct"
model.save_pretrained(sys.argv[1] + "/adapter")
from accelerate.utils import extract_model_from_parallel
extract_model_from_parallel(model)
import torch
from bitsandbytes.nn import Linear8bitLt
with torch.no_grad():
    Linear8bitLt(64, 64, has_fp16_weights=False).to("cpu").eval()(torch.ones(1, 64))
"""


def test_loading_adapting_and_saving_are_silent(tmp_path):
    # What a command run by an earlier test has left in this process's environment is none of the program's.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True, env=environment)
    assert result.stdout == ""
    assert result.stderr == ""
