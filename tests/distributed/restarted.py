"""One of several processes of a launcher that restarts them: the second is killed once, after its second step.

python -m tests.distributed.restarted RUN WANTED SETTINGS    as JSON: what ``train`` is asked for, and of ``ORPOConfig``
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from .starts import train


class Killed(TrainerCallback):
    """Kills process 1 after the second step, unless it has been restarted."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run, wanted, settings = sys.argv[1:]
    trainer = train(run, 2, callbacks=[Killed()], resume=json.loads(wanted), **json.loads(settings))
    began_at = trainer._initial_global_step
    Path(run).with_name(f"began-{os.environ['RANK']}").write_text(str(began_at), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
