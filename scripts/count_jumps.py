"""Count how often one optimizer step jumps between files, a measure of how hard the step is to follow.

    python scripts/count_jumps.py          # the second step of three, of a tiny model, without logging

A jump is a call of a function of the package that lies in another file than the previous such call. The names of the
files and their calls are printed, so that a reader sees where a step goes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import TrainerCallback

import oddsmith
from oddsmith import ORPOConfig, ORPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer

PACKAGE = str(Path(oddsmith.__file__).parent)


class JumpCounter(TrainerCallback):
    """Count from the end of one step to the end of the next."""

    def __init__(self, step: int):
        self.step, self.jumps, self.last = step, 0, ""
        self.calls: Counter[str] = Counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Start or stop counting."""
        if state.global_step == self.step - 1:
            sys.setprofile(self._called)
        elif state.global_step == self.step:
            sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            self.jumps += file != self.last
            self.last = file
            self.calls[file.removeprefix(f"{PACKAGE}/")] += 1


def main() -> int:
    """Train three steps and print what the second one called."""
    tokenizer, rows = tiny_tokenizer(), ragged_pairs(12)
    counter = JumpCounter(step=2)
    with tempfile.TemporaryDirectory() as folder:
        settings = ORPOConfig(
            output_dir=folder,
            max_steps=3,
            per_device_train_batch_size=2,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = ORPOTrainer(tiny_model(), settings, None, rows, None, tokenizer, callbacks=[counter])
        trainer.train()
    for file, calls in counter.calls.most_common():
        print(f"{calls:5}  {file}")
    print(f"{counter.jumps} jumps between {len(counter.calls)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
