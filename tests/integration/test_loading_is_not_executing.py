"""Untrusted models, adapters, datasets and configurations: their code, which would leave a file behind, never runs."""

import gzip
import json
import pickle
import re
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.data.sources import load_rows
from oddsmith.data.sources.tables import read_hub
from oddsmith.errors import ConfigError, DataError, ModelError
from oddsmith.inference.loading import load_for_inference
from oddsmith.model.loading.models import load_model, load_tokenizer
from tests.command import SETTINGS, run_here, save_config, save_model, save_pairs
from tests.tiny import tiny_model

OWN_CODE = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
def generate(*args, **kwargs):
    pass
"""


class Touches:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "ran")


@pytest.fixture
def marker(tmp_path):
    """The file that code would write if it ran; each test ends with the check that it is not there."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "untrusted code was run"


@pytest.fixture
def folder(tmp_path, marker):
    """A model folder with code beside it."""
    folder = save_model(tmp_path / "model")
    for name in ("own.py", "modeling_own.py", "custom_generate/generate.py", "__init__.py", "sitecustomize.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(OWN_CODE.format(marker=str(marker)))
    return folder


def change(file: Path, **changes) -> None:
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**settings, **changes}))


def adapter_on(base: Path, folder: Path, **changes) -> Path:
    settings = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), settings)
    model.base_model.model.name_or_path = str(base)
    model.save_pretrained(folder)
    change(folder / "adapter_config.json", base_model_name_or_path=str(base), **changes)
    return folder


OWN_MAP = {
    "AutoConfig": "own.OwnConfig",
    "AutoModelForCausalLM": "own.Own",
    "AutoModelForSeq2SeqLM": "own.Own",
    "AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"],
}


class TestCodeInAFolder:
    def test_transformers_own_class_is_taken_where_there_is_one(self, folder):
        change(folder / "config.json", auto_map=OWN_MAP)
        change(folder / "tokenizer_config.json", auto_map=OWN_MAP)
        change(folder / "generation_config.json", custom_generate="own", auto_map=OWN_MAP)
        assert type(load_model(str(folder))).__name__ == "LlamaForCausalLM"
        assert load_tokenizer(str(folder))("a").input_ids

    def test_else_one_line_says_how_it_is_allowed(self, folder):
        change(folder / "config.json", auto_map=OWN_MAP, model_type="own", architectures=["Own"])
        with pytest.raises(ModelError, match="needs its own Python code; read that code, then give --trust-remote"):
            load_model(str(folder))

    def test_a_tokenizer_class_of_its_own(self, folder):
        change(folder / "tokenizer_config.json", auto_map=OWN_MAP, tokenizer_class="OwnTokenizer")
        with pytest.raises(ModelError, match="give --trust-remote-code on the command line"):
            load_tokenizer(str(folder))

    def test_a_file_that_says_so_itself(self, folder):
        for name, changes in (
            ("config.json", {"trust_remote_code": True}),
            ("config.json", {"text_config": {"deep": [{"trust_remote_code": True}]}}),
            ("tokenizer_config.json", {"init_kwargs": {"trust_remote_code": True}}),
            ("generation_config.json", {"trust_remote_code": True}),
        ):
            before = (folder / name).read_text()
            change(folder / name, **changes)
            with pytest.raises(ModelError, match=rf"its {name} asks for trust_remote_code; a file cannot"):
                load_model(str(folder))
            (folder / name).write_text(before)

    @pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
    def test_kernels_that_its_configuration_names(self, folder, key):
        change(folder / "config.json", **{key: "owner/kernel"})
        with pytest.raises(ModelError, match="downloads code from the hub and runs it"):
            load_model(str(folder))
        change(folder / "config.json", **{key: {"text_config": "owner/kernel:flash"}})
        with pytest.raises(ModelError, match="downloads code from the hub and runs it"):
            load_model(str(folder))

    def test_kernels_that_a_setting_names(self, folder):
        with pytest.raises(ModelError, match=r"attn_implementation is 'owner/kernel', which downloads code"):
            load_model(str(folder), attn_implementation="owner/kernel")
        with pytest.raises(ModelError, match="use_kernels downloads code"):
            load_model(str(folder), use_kernels=True)

    def test_chat_eval_and_export_allow_it_never(self, folder, capsys):
        change(folder / "config.json", auto_map=OWN_MAP, model_type="own", architectures=["Own"])
        with pytest.raises(ModelError, match="--trust-remote-code"):
            load_for_inference(str(folder))
        outcome = run_here(capsys, "export", folder, "--to", "merged")
        assert outcome.code == 2


class TestPickles:
    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
    def test_pickled_weights(self, folder, marker, name):
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Touches(marker)))
        message = rf"holds {name} and no safetensors; pickles can run code .*save_pretrained"
        with pytest.raises(ModelError, match=message):
            load_model(str(folder))

    def test_beside_safetensors_they_are_not_looked_at(self, folder, marker):
        for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
            (folder / name).write_bytes(pickle.dumps(Touches(marker)))
        load_model(str(folder))

    @pytest.mark.parametrize("named", ["pytorch_model.bin", "../elsewhere.safetensors", "/etc/passwd"])
    def test_an_index_that_names_others(self, folder, marker, named):
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touches(marker)))
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, named)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelError, match="index.json names"):
            load_model(str(folder))

    def test_a_pickled_adapter(self, folder, tmp_path, marker):
        adapter = adapter_on(folder, tmp_path / "adapter")
        torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
        (adapter / "adapter_model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"holds adapter_model\.bin and no safetensors"):
            load_model(str(adapter))

    def test_turning_the_check_off(self, folder):
        with pytest.raises(ModelError, match="use_safetensors and weights_only cannot be turned off"):
            load_model(str(folder), weights_only=False)

    def test_a_base_that_an_adapter_names(self, folder, tmp_path, marker):
        adapter = adapter_on(folder, tmp_path / "adapter")
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touches(marker)))
        with pytest.raises(ModelError, match=r"holds pytorch_model\.bin and no safetensors"):
            load_model(str(adapter))


class TestAdapters:
    @pytest.mark.parametrize(
        "changes",
        [
            {"megatron_config": {"a": 1}, "megatron_core": "own"},
            {"prompt_tuning_init_state_dict_path": "weights.bin"},
            {"tokenizer_kwargs": {"a": 1}},
            {"adapters": {"a": "elsewhere"}},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_settings_that_do_something(self, folder, tmp_path, monkeypatch, changes):
        adapter = adapter_on(folder, tmp_path / "adapter", **changes)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))  # as where the command is started from that folder
        with pytest.raises(ModelError, match=rf"sets {next(iter(changes))}, so that PEFT would .*; remove it"):
            load_model(str(adapter), is_trainable=True)

    def test_names_of_modules_are_not_imported(self, folder, tmp_path, monkeypatch):
        mapping = {"base_model_class": "Own", "parent_library": "own"}
        adapter = adapter_on(folder, tmp_path / "adapter", auto_mapping=mapping)
        monkeypatch.syspath_prepend(str(folder))
        load_model(str(adapter))

    def test_bases_in_a_circle(self, folder, tmp_path):
        one, other = tmp_path / "one", tmp_path / "other"
        adapter_on(other, one)
        adapter_on(one, other)
        with pytest.raises(ModelError, match="it and its base are adapters that name each other"):
            load_model(str(one))

    def test_a_base_with_code(self, folder, tmp_path):
        adapter = adapter_on(folder, tmp_path / "adapter")
        change(folder / "config.json", auto_map=OWN_MAP, model_type="own", architectures=["Own"])
        with pytest.raises(ModelError, match="--trust-remote-code"):
            load_model(str(adapter))


class TestTheCommandLineAlone:
    """Only the command line can set ``trust_remote_code``."""

    def train(self, capsys, tmp_path, *flags, **settings):
        pairs = save_pairs(tmp_path / "pairs.jsonl")
        given = {
            **SETTINGS, "dataset_name": str(pairs), "max_steps": 1, "output_dir": str(tmp_path / "run"), **settings,
        }  # fmt: skip
        return run_here(capsys, "train", save_config(tmp_path / "config.yaml", **given), *flags)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"trust_remote_code": True}, r"config.yaml:\d+: a file cannot allow .* give --trust-remote-code on the"),
            ({"trust-remote-code": "yes"}, r"config.yaml:\d+: a file cannot allow"),
            ({"model_init_kwargs": {"trust_remote_code": True}}, "model_init_kwargs holds trust_remote_code"),
            ({"model_init_kwargs": {"a": [{"trust-remote-code": 1}]}}, "model_init_kwargs holds trust_remote_code"),
            ({"lr_scheduler_kwargs": {"trust_remote_code": True}}, "lr_scheduler_kwargs holds trust_remote_code"),
            ({"model_init_kwargs": {"attn_implementation": "owner/kernel"}}, "downloads code from the hub"),
            ({"attn_implementation": "owner/kernel"}, "downloads code from the hub"),
            ({"model_init_kwargs": {"use_safetensors": False}}, "cannot be turned off"),
        ],
    )
    def test_a_configuration_file_cannot(self, capsys, tmp_path, folder, settings, said):
        outcome = self.train(capsys, tmp_path, model_name_or_path=str(folder), **settings)
        assert outcome.code == 2
        assert len(outcome.err.strip().splitlines()) <= 3
        assert re.search(said, " ".join(outcome.err.split()))

    def test_nor_can_json_on_the_command_line(self, capsys, tmp_path, folder):
        flag = ("--model-init-kwargs", '{"trust_remote_code": true}')
        outcome = self.train(capsys, tmp_path, *flag, model_name_or_path=str(folder))
        assert outcome.code == 2
        assert "give --trust-remote-code on the command line" in " ".join(outcome.err.split())

    def test_the_flag_can_and_the_run_folder_does_not_carry_it_on(self, capsys, tmp_path):
        folder = save_model(tmp_path / "own-model")
        (folder / "own.py").write_text(OWN_CODE.replace('pathlib.Path({marker!r}).write_text("ran")', ""))
        change(folder / "config.json", auto_map=OWN_MAP, model_type="own", architectures=["Own"])
        outcome = self.train(capsys, tmp_path, "--trust-remote-code", model_name_or_path=str(folder))
        assert outcome.code == 0, outcome.err
        written = (tmp_path / "run" / "run.yaml").read_text()
        assert "trust_remote_code: false  # --trust-remote-code was given; give it again" in written
        again = run_here(capsys, "train", tmp_path / "run" / "run.yaml", "--output-dir", tmp_path / "again")
        assert again.code == 2
        assert "give --trust-remote-code" in " ".join(again.err.split())

    def test_a_python_dict_cannot_hold_it_either(self, folder, tmp_path):
        settings = {"use_cpu": True, "report_to": [], "model_init_kwargs": {"trust_remote_code": True}}
        args = ORPOConfig(output_dir=str(tmp_path / "run"), **settings)
        with pytest.raises(ConfigError, match="model_init_kwargs holds trust_remote_code"):
            ORPOTrainer(str(folder), args=args, train_dataset=[])


class TestDatasets:
    @pytest.fixture
    def scripts(self, tmp_path, marker):
        folder = tmp_path / "pairs"
        folder.mkdir()
        (folder / "pairs.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).write_text('ran')\n")
        return folder

    def test_a_folder_with_a_script_and_nothing_else(self, scripts):
        with pytest.raises(DataError, match="holds no file of rows; expected"):
            load_rows(str(scripts))
        with pytest.raises(DataError, match=r"found the suffix '\.py'"):
            load_rows(str(scripts / "pairs.py"))

    def test_a_script_beside_rows_is_not_looked_at(self, scripts):
        save_pairs(scripts / "train.jsonl", 3)
        assert len(load_rows(str(scripts))) == 3

    def test_a_script_on_the_hub(self, scripts):
        """A folder is read by ``datasets`` as a repository is."""
        with pytest.raises(DataError, match="not loaded from the hub"):
            read_hub(str(scripts), None, "train", streaming=False)

    @pytest.mark.parametrize("suffix", [".pkl", ".pt", ".pickle", ".npy"])
    def test_pickled_rows(self, tmp_path, marker, suffix):
        (tmp_path / f"pairs{suffix}").write_bytes(pickle.dumps(Touches(marker)))
        with pytest.raises(DataError, match=rf"found the suffix '\{suffix}'"):
            load_rows(str(tmp_path / f"pairs{suffix}"))

    @pytest.mark.parametrize("reader", ["pandas", "json", "text", "webdataset"])
    def test_a_reader_is_no_dataset(self, tmp_path, monkeypatch, marker, reader):
        """It would read every file of the working folder, ``pandas`` by unpickling."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "train.pkl").write_bytes(pickle.dumps(Touches(marker)))
        with pytest.raises(DataError, match=f"dataset '{reader}' is a reader of the datasets library and no dataset"):
            load_rows(reader)

    def test_a_pickled_type_in_a_parquet_file(self, tmp_path, marker):
        of_a_stranger = {
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Touches(marker)),
        }
        names = ("prompt", "chosen", "rejected")
        schema = pa.schema([pa.field(name, pa.string(), metadata=of_a_stranger) for name in names])
        path = tmp_path / "train.parquet"
        pq.write_table(pa.table({name: [name] for name in names}, schema=schema), path)
        assert b"arrow.py_extension_type" in path.read_bytes() or b"ARROW:schema" in path.read_bytes()
        assert [dict(row) for row in load_rows(str(path))] == [{name: name for name in names}]

    @pytest.mark.parametrize("name", ["bomb.csv.gz", "bomb.jsonl.gz", "bomb.json.gz"])
    def test_a_file_that_unpacks_without_end(self, tmp_path, name):
        block = b"prompt,chosen,rejected\n" + b"0" * 2**20 if "csv" in name else b'{"prompt": "' + b"0" * 2**20
        with gzip.open(tmp_path / name, "wb") as file:
            for _ in range(80):
                file.write(block)
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match="unpacks to more than 67,108,864 bytes, 200 times its size"):
                load_rows(str(tmp_path / name))
            assert tracemalloc.get_traced_memory()[1] < 300 * 2**20
        finally:
            tracemalloc.stop()

    def test_an_ordinary_packed_file(self, tmp_path):
        rows = save_pairs(tmp_path / "plain.jsonl", 50).read_bytes()
        with gzip.open(tmp_path / "pairs.jsonl.gz", "wb") as file:
            file.write(rows)
        assert load_rows(str(tmp_path / "pairs.jsonl.gz")) == load_rows(str(tmp_path / "plain.jsonl"))
