"""Only regular files are opened, nothing waits, and a folder that is written to leads nowhere else. Real pipes."""

import os
import pickle
import socket
import subprocess
import sys
from contextlib import chdir, nullcontext
from pathlib import Path

import pytest

from oddsmith.errors import NotAFileError, UsageError
from oddsmith.system.outside import open_file, read_text, require_file, require_plain_folder
from oddsmith.system.run_folder import require_plain_run

pytestmark = pytest.mark.timeout(20)


def put_socket(place: Path) -> None:
    with chdir(place.parent), socket.socket(socket.AF_UNIX) as bound:  # the name of a socket is at most 107 bytes
        bound.bind(place.name)


SPECIAL = {
    "pipe": (os.mkfifo, "is a pipe"),
    "socket": (put_socket, "is a socket"),
    "device": (lambda place: place.symlink_to("/dev/zero"), "is a device"),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("mode", ["rb", "r", "ab+"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind, mode):
    put, found = SPECIAL[kind]
    put(tmp_path / "x.json")
    for opened in (open_file, lambda path, mode: require_file(path)):
        with pytest.raises(NotAFileError, match=f"x.json: {found}, not a file") as raised:
            opened(tmp_path / "x.json", mode)
    assert isinstance(raised.value, OSError)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # as it comes from another process
    assert raised.value.exit_code == UsageError.exit_code


def test_a_file_is_read_and_a_link_to_one_only_where_it_may_be(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("é")
    link.symlink_to(file)
    assert read_text(link) == "é" == read_text(file, follow=False)
    with open_file(link) as opened:
        assert os.get_blocking(opened.fileno())
        assert not os.get_inheritable(opened.fileno())
    with pytest.raises(NotAFileError, match="link: is a symbolic link"):
        read_text(link, follow=False)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read_text(tmp_path)
    with open_file(tmp_path / "new", "a", follow=False) as opened:
        opened.write("x")
    assert read_text(tmp_path / "new") == "x"


def test_a_pipe_that_the_user_typed_is_read_to_its_end(tmp_path):
    code = "import sys; from oddsmith.system.outside import read_text; print(len(read_text(sys.argv[1], typed=True)))"
    command = [sys.executable, "-c", code, "/dev/stdin"]
    shown = subprocess.run(command, input="x" * 100_000, capture_output=True, text=True, timeout=20)
    assert shown.stdout.strip() == "100000", shown.stderr
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotAFileError):
        read_text(tmp_path / "pipe", typed=True)


@pytest.mark.parametrize("kind", [*SPECIAL, "link", "broken link", "link to a folder"])
@pytest.mark.parametrize("place", [".", "checkpoint-3", "checkpoint-3/deep/deeper"])
def test_a_folder_that_is_written_to_is_plain(tmp_path, kind, place):
    folder = tmp_path / "run"
    (folder / place).mkdir(parents=True)
    links = {"link": __file__, "broken link": "nothing", "link to a folder": "/tmp"}
    put, _ = SPECIAL.get(kind, (lambda path: path.symlink_to(links[kind]), ""))
    require_plain_folder(folder)
    put(folder / place / "odd")
    with pytest.raises(NotAFileError, match=r"odd: is a .*not a file of this folder; (put|remove)"):
        require_plain_folder(folder)


def test_the_folder_itself_may_be_a_link_and_a_tracker_may_keep_its_own(tmp_path):
    folder = tmp_path / "run"
    (folder / "wandb").mkdir(parents=True)
    (folder / "wandb" / "latest-run").symlink_to("nothing")
    (tmp_path / "link").symlink_to(folder)
    require_plain_folder(tmp_path / "link")
    require_plain_folder(tmp_path / "none")
    (folder / "checkpoint-3").mkdir()
    (folder / "wandb").rename(folder / "checkpoint-3" / "wandb")
    with pytest.raises(NotAFileError, match="checkpoint-3/wandb/latest-run: is a symbolic link"):
        require_plain_folder(tmp_path / "link")


@pytest.mark.parametrize(("target", "is_read"), [("blobs/ab", True), ("secret", False), ("blobs/../secret", False)])
def test_a_snapshot_of_the_hub_holds_links_to_its_blobs_alone(tmp_path, target, is_read):
    folder = tmp_path / "snapshots" / "0"
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for file in ("blobs/ab", "secret"):
        (tmp_path / file).write_text("x")
    (folder / "events.jsonl").symlink_to(tmp_path / target)
    with nullcontext() if is_read else pytest.raises(NotAFileError, match=r"events.jsonl: is a symbolic link"):
        require_plain_run(folder)
