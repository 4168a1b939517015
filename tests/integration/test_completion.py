"""``oddsmith completion``: what a shell offers, in a real shell."""

import shutil
import subprocess

import pytest

from oddsmith.cli.main import COMMANDS
from oddsmith.cli.parsing.schema import load_fields
from tests.command import run_here


@pytest.fixture
def script(capsys):
    def of(shell: str) -> str:
        code, out, err = run_here(capsys, "completion", shell)
        assert (code, err) == (0, "")
        return out

    return of


def offered(script: str, *words: str, cwd=None) -> set[str]:
    """What bash offers for the last of the words."""
    program = (
        f"{script}\n"
        f"COMP_WORDS=({' '.join(words)}); [ -n \"$LAST_EMPTY\" ] && COMP_WORDS+=('')\n"
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _shtab_oddsmith; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, timeout=20, cwd=cwd)
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_and_flags(script):
    bash = script("bash")
    assert offered(bash, "oddsmith", "d") == {"data", "demo", "diagnose", "doctor"}
    assert offered(bash, "oddsmith", "data", "c") == {"check"}
    assert offered(bash, "oddsmith", "train", "--learning-r") == {"--learning-rate"}
    assert offered(bash, "oddsmith", "chat", "--learning-r") == set()
    assert offered(bash, "oddsmith", "data", "check", "--eval") == {"--eval-dataset-name"}
    assert offered(bash, "oddsmith", "train", "--nll-on", "re") == {"response"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_setting_is_in_the_script(script, shell):
    text = script(shell)
    for name in COMMANDS:
        assert name.rpartition(" ")[2] in text
    for field in load_fields().values():
        flag = f"no-{field.flag[2:]}" if field.types == ("bool",) and field.default is True else field.flag[2:]
        assert not field.listed or flag in text, flag
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True, timeout=20)


def test_another_shell_is_refused(capsys):
    assert run_here(capsys, "completion", "tcsh").err == "error: the shell is 'tcsh'; expected bash, zsh or fish\n"
    assert run_here(capsys, "completion").err == (
        "error: no shell is given; expected oddsmith completion bash|zsh|fish\n"
    )
