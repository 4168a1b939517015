"""The batch script of ``examples/cluster/slurm`` in real bash; ``srun`` and ``scontrol`` as Slurm's would act."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from oddsmith.checkpoint.manifest import verify
from oddsmith.checkpoint.store import checkpoints
from oddsmith.system.signals import STOP_SIGNALS
from tests.command import SETTINGS, environment, save_config, save_model, save_pairs

SCRIPT = Path(__file__).parents[2] / "examples" / "cluster" / "slurm" / "train.sbatch"
JOB = "1234"

# Starts the tasks with their numbers, and returns the highest of their exit codes (srun's manual: "Return value").
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
tasks=()
for task in $(seq 0 $((TASKS - 1))); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=$TASKS SLURM_NTASKS_PER_NODE=$TASKS "$@" &
  tasks+=($!)
done
highest=0
for task in "${tasks[@]}"; do
  code=0; wait "$task" || code=$?
  [ "$code" -gt "$highest" ] && highest=$code
done
exit "$highest"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
  "show hostnames") echo localhost ;;
  "requeue "*) echo "$2" >> "$REQUEUED" ;;
  *) exit 1 ;;
esac
"""
ODDSMITH = f"""#!/usr/bin/env bash
exec {sys.executable} -m oddsmith.cli.main "$@"
"""


@pytest.fixture
def submit(tmp_path):
    """Runs the script as a job; returns its exit code, its log, and which jobs were put back into the queue."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "oddsmith": ODDSMITH}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    job = {"SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": "localhost", "REQUEUED": str(tmp_path / "requeued")}

    def run(*words: object, tasks: int = 1, until: str | None = None) -> tuple[int, str, str]:
        log, requeued = tmp_path / "log", tmp_path / "requeued"
        log.write_text("")
        requeued.write_text("")
        with log.open("w") as file:
            process = subprocess.Popen(
                ["bash", str(SCRIPT), *map(str, words)],
                env=environment() | job | {"PATH": f"{commands}:{os.environ['PATH']}", "TASKS": str(tasks)},
                stdout=file,
                stderr=file,
                # Slurm starts its tasks with no signal ignored; a shell in the background ignores some.
                preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS],
            )
        try:
            while until is not None and until not in log.read_text():
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            for one in psutil.Process(process.pid).children(recursive=True) if until else ():
                if "oddsmith.cli.main" in one.cmdline():  # the tasks; neither the script nor srun is of the job step
                    one.send_signal(signal.SIGUSR1)
            return process.wait(150), log.read_text(), requeued.read_text()
        finally:
            if process.poll() is None:
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    one.kill()
                process.wait()

    return run


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_job_is_put_back_and_goes_on_until_the_run_is_done(tasks, submit, tmp_path):
    save_model(tmp_path / "model")
    save_pairs(tmp_path / "pairs.jsonl", 8)
    paths = {"model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "pairs.jsonl")}
    long = {"logging_steps": 1, "save_strategy": "no", "max_steps": 1000}
    config, run = save_config(tmp_path / "config.yaml", **paths, **SETTINGS, **long), tmp_path / "run"

    code, log, requeued = submit(config, run, tasks=tasks, until="step 2/")
    assert (code, requeued) == (75, f"{JOB}\n"), log
    assert "starting from the beginning" in log
    assert log.count("stopped by SIGUSR1 after step") == 1
    step = verify(checkpoints(run)[-1]).step

    more = ("--max-steps", step + 1)  # so that it is soon done
    code, log, requeued = submit(config, run, *more, tasks=tasks)
    assert (code, requeued) == (0, ""), log
    assert f"done: {step + 1} steps" in log


def test_a_job_that_fails_is_not_put_back(submit, tmp_path):
    code, log, requeued = submit(tmp_path / "missing.yaml", tmp_path / "run")
    assert (code, requeued) == (2, "")
    assert "missing.yaml" in log


def test_the_script_says_how_to_call_it(submit):
    code, log, requeued = submit()
    assert (code, requeued) == (1, "")
    assert "usage: sbatch train.sbatch CONFIG.yaml RUN_FOLDER [flags]" in log
