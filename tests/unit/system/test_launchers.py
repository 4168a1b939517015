"""What launchers say by environment variables, translated into torchrun's."""

import os
from types import SimpleNamespace

import pytest

from oddsmith.errors import ConfigError
from oddsmith.system.launchers import NAMES, join_processes, may_restart

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}


@pytest.fixture
def launched(monkeypatch):
    """Set variables as a launcher would; return how many processes the run has, and torchrun's variables."""
    for name in (*NAMES, "MASTER_ADDR", "MASTER_PORT", *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)

    def join(**variables: str) -> tuple[int, list[str | None]]:
        with monkeypatch.context() as patch:
            for name in (*NAMES, "MASTER_ADDR", "MASTER_PORT"):  # are removed afterwards, too
                patch.setenv(name, "")
                patch.delenv(name)
            for name, value in variables.items():
                patch.setenv(name, value)
            return join_processes(), [os.environ.get(name) for name in (*NAMES, "MASTER_ADDR", "MASTER_PORT")]

    return join


def test_one_process_has_no_launcher(launched):
    assert launched() == (1, [None] * 6)
    assert launched(WORLD_SIZE="1") == (1, [None, "1", None, None, None, None])
    assert launched(OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="1") == (1, [None] * 6)


def test_variables_of_torchrun_stay(launched):
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "a"}
    assert launched(**given, **OPEN_MPI) == (2, ["1", "2", "0", "1", "a", None])
    assert launched(**given, MASTER_PORT="7", ACCELERATE_USE_CPU="True") == (2, ["1", "2", "0", "1", "a", "7"])


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({**OPEN_MPI, "MASTER_ADDR": "first"}, ["5", "8", "1", "4", "first", "29500"]),
        (MPICH, ["1", "2", "1", "2", "127.0.0.1", "29500"]),
        ({**SLURM, "MASTER_ADDR": "first", "MASTER_PORT": "7"}, ["3", "4", "1", "2", "first", "7"]),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": "41"}, ["3", "4", "1", "4", "127.0.0.1", "20041"]),
        # Open MPI's mpirun starts a daemon on each machine with srun, whose variables its processes have as well.
        ({**SLURM, **OPEN_MPI, "MASTER_ADDR": "first"}, ["5", "8", "1", "4", "first", "29500"]),
        # srun --mpi=pmi2
        (
            {**SLURM, "PMI_RANK": "3", "PMI_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "7"},
            ["3", "4", "1", "2", "a", "7"],
        ),
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2"}, ["1", "2", "1", "2", "127.0.0.1", "29500"]),
    ],
)
def test_processes_of_mpirun_and_srun_are_one_run(launched, variables, expected):
    assert launched(**variables) == (int(expected[1]), expected)


def test_a_batch_script_is_no_task_of_srun(launched):
    """Slurm counts it as task 0 of all that it has reserved room for."""
    script = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "ENVIRONMENT": "BATCH"}
    assert launched(**script) == (1, [None] * 6)
    assert launched(**{**script, "SLURM_STEP_NUM_TASKS": "1"}) == (1, [None] * 6)


def test_a_shell_of_srun_is_no_task_and_what_it_starts_with_srun_is(launched, monkeypatch):
    """The other tasks of srun --pty never come to train."""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert launched(**SLURM, SLURM_PTY_PORT="41000", MASTER_ADDR="a")[0] == 1
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    assert launched(**SLURM, SLURM_PTY_PORT="41000", MASTER_ADDR="a")[0] == 4


def test_one_process_of_accelerate_on_a_gpu_may_have_an_address(launched):
    assert launched(ACCELERATE_USE_CPU="False", MASTER_ADDR="a", MASTER_PORT="7")[0] == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is missing"),
        ({"RANK": "1"}, "RANK is 1, and WORLD_SIZE is missing"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, and WORLD_SIZE is 2"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; expected a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'; expected a whole number"),
        ({"RANK": "", "WORLD_SIZE": "1"}, "RANK is ''; expected a whole number"),
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
            "accelerate launch was asked for several processes, and on CPUs starts one alone",
        ),
        (OPEN_MPI, "a launcher has started 8 processes, on several machines, but the environment variable MASTER_ADDR"),
        ({**MPICH, "PMI_SIZE": "two"}, "MASTER_ADDR"),
    ],
)
def test_variables_that_name_no_process_are_refused(launched, variables, message):
    with pytest.raises(ConfigError, match=message):
        launched(**variables)


def test_torchrun_says_whether_it_restarts(monkeypatch):
    assert not may_restart()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")  # its default
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not may_restart()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert may_restart()
