"""The files and commands of ``examples/cluster``, as they stand there, on two processes over gloo.

Launchers are the real ones. Where a command is for two machines, it is started twice here, with what each is told.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from oddsmith.checkpoint.manifest import read_manifest
from tests.command import environment, save_config, save_model, save_pairs, with_tests
from tests.forked import free_port

from .test_table import require_installed

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

EXAMPLES = Path(__file__).parents[2] / "examples" / "cluster"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:torchrun|accelerate|deepspeed) .*$", README, flags=re.MULTILINE)
OF_CONTINUOUS_INTEGRATION = "accelerate/fsdp2.yaml --no_python"  # the others are exhaustive
SHARDED_BY = {"fsdp": "FSDP", "zero": "DeepSpeed"}
LIMIT_S = 200


@pytest.fixture
def place(tmp_path) -> Path:
    """Return a copy of the examples for a tiny model and one or two processes, as the folder of a shared disk."""
    folder = tmp_path / "shared"
    shutil.copytree(EXAMPLES, folder)
    for file in (folder / "accelerate").iterdir():
        text = file.read_text(encoding="utf-8")
        assert "num_processes: 8" in text
        file.write_text(text.replace("num_processes: 8", "num_processes: 2"), encoding="utf-8")
    (folder / "hosts").write_text("one slots=1\ntwo slots=1\n", encoding="utf-8")
    save_config(
        folder / "recipe.yaml",
        model_name_or_path=str(save_model(folder / "model")),
        dataset_name=str(save_pairs(folder / "pairs.jsonl")),
        output_dir=str(folder / "runs" / "mine"),
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_length=64,
        bf16=False,
        report_to="none",
    )
    return folder


def install(place: Path, sharded_by: str | None) -> None:
    """Put ``oddsmith`` where ``run`` finds it: on the road of GPUs if something is to be sharded, else on CPUs."""
    module, words = ("oddsmith.cli.main", "--use-cpu") if sharded_by is None else ("tests.distributed.command", "")
    command = place / "bin" / "oddsmith"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m {module} "$@" {words}\n', encoding="utf-8")
    command.chmod(0o755)


def require_one_run(
    place: Path, machines: Sequence[tuple[Sequence[str], Mapping[str, object]]], sharded_by: str | None = None
) -> None:
    """Run the command of each machine with its variables, all at once; require one run of two processes that is done.

    ``sharded_by`` is who has to share out the weights, ``None`` for nobody.
    """
    install(place, sharded_by)
    paths = os.pathsep.join([str(place / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    started, logs = [], []
    for number, (words, variables) in enumerate(machines):
        logs.append(place / f"log-{number}")
        with logs[-1].open("w") as log:
            own = {"PATH": paths} | {name: str(value) for name, value in variables.items()}
            started.append(
                subprocess.Popen(
                    words,
                    cwd=place,
                    env=with_tests(environment()) | own,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    try:
        codes = [process.wait(LIMIT_S) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = "\n".join(log.read_text(encoding="utf-8") for log in logs)
    assert codes == [0] * len(machines), text[-5000:]
    assert text.count("= batch size 2 x accumulation 2 x processes 2") == 1, text
    assert text.count("done: 2 steps") == 1, text
    run = place / "runs" / "mine"
    assert (run / "model.safetensors").is_file()
    manifest = read_manifest(run / "checkpoint-2")
    assert (manifest.world_size, manifest.sharded_by) == (2, sharded_by)


def on_machine(command: str, rank: int, port: int) -> list[str]:
    """Return a command of the page for one of two machines, with one process on each."""
    command = re.sub(r"--(machine_rank|node_rank) 1", rf"--\1 {rank}", command)
    for known, here in {
        "--nproc-per-node 8": "--nproc-per-node 1",
        "--num_processes 16": "--num_processes 2",
        "FIRST": "localhost",
        "29500": str(port),
    }.items():
        command = command.replace(known, here)
    return command.split()


def named(command: str) -> str:
    """Return the launcher of a command, its file, and for how many machines it is."""
    file = re.search(r"(\w+)\.(?:yaml --no|yaml --num|json)", command)
    parts = (command.split()[0], file and file[1], "two" if "FIRST" in command else "one")
    return "-".join(filter(None, parts))


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            command, id=named(command), marks=[] if OF_CONTINUOUS_INTEGRATION in command else [pytest.mark.exhaustive]
        )
        for command in COMMANDS
    ],
)
def test_a_command_of_the_page_trains(place, command):
    if "zero" in command or command.startswith("deepspeed"):
        require_installed("zero")
    if "FIRST" in command:
        port = free_port()
        machines = [(on_machine(command, rank, port), {}) for rank in range(2)]
    else:
        machines = [
            (command.replace("--nproc-per-node 8", "--nproc-per-node 2").replace("gpus 8", "gpus 2").split(), {})
        ]
    sharded_by = next((by for word, by in SHARDED_BY.items() if word in command), None)
    require_one_run(place, machines, sharded_by)


def test_accelerate_does_not_pass_one_process_on_a_cpu_for_several(place):
    """It starts one, which would train alone."""
    install(place, None)
    words = ["accelerate", "launch", "--cpu", "--num_processes", "2", "--no_python", "oddsmith", "train", "recipe.yaml"]
    variables = with_tests(environment()) | {
        "PATH": f"{place / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    }
    done = subprocess.run(words, cwd=place, env=variables, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode != 0
    assert "on CPUs starts one alone without mpirun" in done.stderr
    assert not (place / "runs").exists()


def test_the_page_has_a_command_for_each_file_and_launcher():
    files = {str(file.relative_to(EXAMPLES)) for file in (EXAMPLES / "accelerate").iterdir()}
    assert {file for file in files if not any(f"{file} " in command for command in COMMANDS)} == set()
    assert {command.split()[0] for command in COMMANDS if "FIRST" in command} == {"torchrun", "accelerate", "deepspeed"}


def container_of(document: dict) -> dict:
    """Return the container of a JobSet's only kind of pods."""
    (node,) = document["spec"]["replicatedJobs"]
    (container,) = node["template"]["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.exhaustive
def test_the_command_of_a_jobset_trains(place):
    container = container_of(yaml.safe_load((place / "kubernetes" / "jobset.yaml").read_text(encoding="utf-8")))
    (variable,) = container["env"]
    assert variable == {"name": "FIRST_NODE", "value": "oddsmith-node-0-0.oddsmith"}
    (script,) = container["args"]
    port = free_port()
    script = script.replace("--nproc-per-node 8", "--nproc-per-node 1").replace("29500", str(port))
    words = [*container["command"], script.replace("/shared", str(place))]
    machines = [(words, {"JOB_COMPLETION_INDEX": rank, "FIRST_NODE": "localhost"}) for rank in range(2)]
    require_one_run(place, machines)


@pytest.mark.exhaustive
def test_the_command_of_a_trainjob_trains(place):
    """The variables are those that Kubeflow Trainer's torch plug-in gives each node."""
    trainer = yaml.safe_load((place / "kubernetes" / "trainjob.yaml").read_text(encoding="utf-8"))["spec"]["trainer"]
    words = [word.replace("/shared", str(place)) for word in trainer["command"] + trainer["args"]]
    known = {"NNODES": 2, "NPROC_PER_NODE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    machines = [
        (words, {f"PET_{name}": value for name, value in {**known, "NODE_RANK": rank}.items()}) for rank in range(2)
    ]
    require_one_run(place, machines)


@pytest.mark.exhaustive
def test_the_command_of_skypilot_trains(place):
    script = yaml.safe_load((place / "skypilot" / "train.yaml").read_text(encoding="utf-8"))["run"]
    script = script.replace("29500", str(free_port())).replace("/shared", str(place)).replace("examples/cluster/", "")
    known = {"NUM_NODES": 2, "NUM_GPUS_PER_NODE": 1, "NODE_IPS": "127.0.0.1\n127.0.0.1"}
    machines = [
        (["bash", "-c", script], {f"SKYPILOT_{name}": value for name, value in {**known, "NODE_RANK": rank}.items()})
        for rank in range(2)
    ]
    require_one_run(place, machines)
