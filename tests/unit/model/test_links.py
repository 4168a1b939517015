"""A model folder cannot make us copy a file of this machine, or wait for a pipe."""

import os

import pytest

from oddsmith.errors import ModelError
from oddsmith.model.loading.models import load_model, load_tokenizer
from tests.command import save_model

FILES = ["tokenizer.model", "chat_template.jinja", "preprocessor_config.json", "vocab.txt", "notes"]


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("file", FILES)
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, load, file):
    (tmp_path / "id_rsa").write_text("private")
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to(tmp_path / "id_rsa")
    with pytest.raises(ModelError, match=f"{file} is a link to a file outside of the folder"):
        load(str(folder))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("file", FILES)
def test_a_pipe_is_refused(folder, load, file):
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    with pytest.raises(ModelError, match=f"{file} is a pipe, a socket or a device"):
        load(str(folder))


def test_a_shard_that_is_a_pipe_is_refused(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(ModelError, match="model.safetensors is a pipe, a socket or a device"):
        load_model(str(folder))


def test_links_within_the_folder_and_to_weights_may_stay(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "weights.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "weights.safetensors")
    (folder / "notes").symlink_to("config.json")
    load_model(str(folder))


def test_a_snapshot_in_the_cache_of_the_hub_is_made_of_links(folder, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0af", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(blobs / str(number))
    load_model(str(snapshot))
    load_tokenizer(str(snapshot))
