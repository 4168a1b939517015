"""``oddsmith export RUN --to gguf``: from a run to files that llama.cpp runs, or one line and nothing left behind."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from oddsmith.export import divergence
from oddsmith.export.gguf import convert, parts, proof
from oddsmith.export.gguf import export as export_module
from oddsmith.export.gguf.llama_cpp import GgufModel
from oddsmith.model.loading.models import load_model, load_tokenizer
from tests.command import run_here
from tests.llama_cpp_oracle import llama_cpp_source, read_fields
from tests.tiny_families import save_family
from tests.tiny_runs import train_run

TYPES = "f16,q8_0,Q4_K_M"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_family(tmp_path_factory.mktemp("base") / "tiny-llama", "llama")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    return train_run(base, tmp_path_factory.mktemp("runs") / "my-run", {})


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "my-run")


@pytest.fixture
def model(base, tmp_path):
    return shutil.copytree(base, tmp_path / "tiny-llama")


def left(folder):
    return sorted(path.name for path in folder.rglob("*"))


def assert_refused(outcome, code, *words):
    assert outcome.code == code
    assert outcome.out == ""
    assert outcome.err.splitlines()[-1].startswith("error:")
    for word in words:
        assert word in outcome.err
    assert "Traceback" not in outcome.err


def test_a_run_becomes_files_that_llama_cpp_runs(run, capsys):
    outcome = run_here(capsys, "export", run, "--to", "gguf", "--quantize", TYPES, "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    names = ["my-run-F16.gguf", "my-run-Q8_0.gguf", "my-run-Q4_K_M.gguf"]
    assert left(run / "gguf") == sorted(["Modelfile", *names])
    assert [file["path"] for file in document["files"]] == [str(run / "gguf" / name) for name in names]
    assert document["merge"]["base"]
    kl = [file["proof"]["divergence"]["kl"] for file in document["files"]]
    assert kl[0] < 1e-3
    assert kl[0] < kl[1] < kl[2]
    sizes = [(run / "gguf" / name).stat().st_size for name in names]
    assert [file["size_bytes"] for file in document["files"]] == sizes
    assert "FROM ./my-run-F16.gguf" in (run / "gguf" / "Modelfile").read_text()

    trained, tokenizer = load_model(str(run)).eval(), load_tokenizer(str(run))
    ids = tokenizer("the cat sat on a mat and then").input_ids
    with GgufModel(run / "gguf" / names[0], threads=1) as exported, torch.no_grad():
        assert (
            exported.logits(ids).argmax(-1) == trained(torch.tensor([ids])).logits[0].argmax(-1).numpy()
        ).mean() > 0.8
        assert exported.chat_template == tokenizer.chat_template


def test_the_lines_for_a_shell_in_a_card_make_the_files_that_they_name(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```sh\n(.*?)```", (run / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    export, llama, ollama = lines.splitlines()
    assert run_here(capsys, *shlex.split(export)[1:]).code == 0
    assert [file.name for file in tmp_path.glob(llama.removeprefix("llama-cli -m "))] == ["my-run-Q4_K_M.gguf"]
    assert ollama == "ollama create my-run -f gguf/Modelfile && ollama run my-run"
    assert (tmp_path / "gguf" / "Modelfile").is_file()


def test_what_is_printed(model, tmp_path, capsys):
    outcome = run_here(capsys, "export", model, "--to", "gguf", "--quantize", "q8_0,bf16", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    table = outcome.out.splitlines()
    assert table[0] == f"{tmp_path / 'out'}: {model} for llama.cpp and Ollama"
    assert table[1].split() == ["MB", "KL", "a", "token", "same", "next", "token", "perplexity"]
    assert [line.split()[0] for line in table[2:4]] == ["tiny-llama-Q8_0.gguf", "tiny-llama-BF16.gguf"]
    assert "the model itself has perplexity" in table[4]
    assert f"oddsmith chat {tmp_path / 'out' / 'tiny-llama-Q8_0.gguf'}" in outcome.out
    for line in ("writing bf16", "quantising to q8_0", "running q8_0 in llama.cpp", "running bf16 in llama.cpp"):
        assert outcome.err.count(line) == 1  # the file that others are made from is made once
    assert left(tmp_path / "out") == ["Modelfile", "tiny-llama-BF16.gguf", "tiny-llama-Q8_0.gguf"]


def test_the_text_part_of_a_vision_language_model(tmp_path, capsys):
    folder = save_family(tmp_path / "gemma", "gemma3-images")
    outcome = run_here(capsys, "export", folder, "--to", "gguf", "--quantize", "bf16", "--json")
    assert outcome.code == 0, outcome.err
    (file,) = json.loads(outcome.out)["files"]
    assert file["proof"]["divergence"]["kl"] < 1e-3
    assert "text part alone" in json.loads(outcome.out)["left_out"]
    assert "the files hold the model's text part alone; for images llama.cpp needs a second file" in outcome.err


@pytest.mark.parametrize(("place", "title"), [("merged", "my-run"), ("checkpoint-7", "my-run-checkpoint-7")])
def test_files_are_named_after_the_run(base, tmp_path, capsys, place, title):
    folder = shutil.copytree(base, tmp_path / "my-run" / place)
    assert run_here(capsys, "export", folder, "--to", "gguf", "--quantize", "q8_0").code == 0
    assert left(folder / "gguf") == ["Modelfile", f"{title}-Q8_0.gguf"]
    assert read_fields(folder / "gguf" / f"{title}-Q8_0.gguf")["general.name"] == title


def test_a_model_with_other_rope_factors_for_long_texts_is_compared_on_short_ones(tmp_path, capsys):
    folder = save_family(tmp_path / "phi", "phi3-long")
    outcome = run_here(capsys, "export", folder, "--to", "gguf", "--quantize", "f16")
    assert outcome.code == 0, outcome.err


def test_more_types_come_beside_and_the_same_only_when_asked(model, capsys):
    export = ("export", model, "--to", "gguf", "--quantize")
    assert run_here(capsys, *export, "q8_0").code == 0
    assert_refused(run_here(capsys, *export, "q8_0"), 2, "tiny-llama-Q8_0.gguf: is there already", "--overwrite")
    assert run_here(capsys, *export, "q4_0").code == 0
    assert run_here(capsys, *export, "q8_0", "--overwrite").code == 0
    assert left(model / "gguf") == ["Modelfile", "tiny-llama-Q4_0.gguf", "tiny-llama-Q8_0.gguf"]


def test_a_modelfile_written_by_hand_is_kept(model, capsys):
    (model / "gguf").mkdir()
    (model / "gguf" / "Modelfile").write_text("FROM llama3")
    outcome = run_here(capsys, "export", model, "--to", "gguf", "--quantize", "q8_0")
    assert_refused(outcome, 2, "Modelfile: is there already")
    assert left(model / "gguf") == ["Modelfile"]


def test_one_file_by_its_name(model, tmp_path, capsys):
    export = ("export", model, "--to", "gguf", "--output", tmp_path / "x" / "mine.gguf", "--quantize")
    assert_refused(run_here(capsys, *export, "q8_0,f16"), 2, "mine.gguf: is one file, but 2 types are wanted")
    assert run_here(capsys, *export, "q8_0").code == 0
    assert left(tmp_path / "x") == ["Modelfile", "mine.gguf"]


class TestRefused:
    def test_families_before_anything_is_written(self, base, trained, tmp_path, capsys):
        other = shutil.copytree(base, tmp_path / "other")
        settings = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**settings, "architectures": ["OlmoForCausalLM"]}))
        run = shutil.copytree(trained, tmp_path / "run")
        adapter = json.loads((run / "adapter_config.json").read_text())
        (run / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": str(other)}))
        for name in (other, run):
            before = left(name)
            outcome = run_here(capsys, "export", name, "--to", "gguf")
            assert_refused(
                outcome, 2, "OlmoForCausalLM is none of the families", "Llama, Mistral, Mixtral", "--converter"
            )
            assert "merging" not in outcome.err
            assert left(name) == before

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--quantize", "q3_k"], "quantize is 'q3_k'; expected one or several of: f32, f16, bf16, q8_0"),
            (["--converter", "nothing.py"], "nothing.py: no file is there; expected llama.cpp's convert_hf_to_gguf.py"),
            (["--push-to-hub", "owner/name"], "the hub is switched off"),
            (["--output", "config.json/deep"], "is a file; expected a folder there"),
        ],
    )
    def test_flags(self, model, flags, message, capsys, monkeypatch):
        monkeypatch.chdir(model)
        before = left(model)
        assert_refused(run_here(capsys, "export", model, "--to", "gguf", *flags), 2, message)
        assert left(model) == before

    def test_a_folder_that_is_no_run_and_a_gguf_file(self, tmp_path, model, capsys):
        (tmp_path / "empty").mkdir()
        assert_refused(run_here(capsys, "export", tmp_path / "empty", "--to", "gguf"), 2, "holds no model")
        assert run_here(capsys, "export", model, "--to", "gguf", "--quantize", "q8_0").code == 0
        file = model / "gguf" / "tiny-llama-Q8_0.gguf"
        assert_refused(run_here(capsys, "export", file, "--to", "gguf"), 2, "is an exported GGUF file already")

    def test_without_the_extra(self, model, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "cyllama.llama", None)
        before = left(model)
        outcome = run_here(capsys, "export", model, "--to", "gguf")
        assert_refused(outcome, 2, 'pip install "oddsmith[gguf]"')
        assert left(model) == before


class TestFailed:
    """Nothing is left, whatever went wrong."""

    def test_a_conversion_that_computes_something_else(self, model, capsys, monkeypatch):
        """The check that everything rests on: heads that were not permuted are another model."""
        monkeypatch.setattr(parts, "interleave_heads", lambda rows, heads: rows)
        before = left(model)
        outcome = run_here(capsys, "export", model, "--to", "gguf", "--quantize", "q8_0,f16")
        assert_refused(outcome, 1, "f16 does not compute what the model does: KL", "nothing was written")
        assert left(model) == before

    def test_a_quantised_file_past_its_limit_is_only_warned_about(self, model, capsys, monkeypatch):
        monkeypatch.setattr(parts, "interleave_heads", lambda rows, heads: rows)
        outcome = run_here(capsys, "export", model, "--to", "gguf", "--quantize", "q8_0")
        assert outcome.code == 0
        assert "warning: q8_0 is further from the model than expected: KL" in outcome.err
        assert "expected at most 0.01" in outcome.err

    def test_a_quantised_file_that_computes_nan(self, model, capsys, monkeypatch):
        measure = proof.divergence
        monkeypatch.setattr(proof, "divergence", lambda *given: replace(measure(*given), kl=float("nan")))
        before = left(model)
        outcome = run_here(capsys, "export", model, "--to", "gguf", "--quantize", "q8_0")
        assert_refused(outcome, 1, "q8_0 does not compute what the model does: KL nan")
        assert left(model) == before

    def test_a_tokenizer_that_splits_text_differently_is_warned_about(self, model, capsys, monkeypatch):
        read = convert.read_vocabulary
        monkeypatch.setattr(convert, "read_vocabulary", lambda *given: replace(read(*given), begins=True))
        outcome = run_here(capsys, "export", model, "--to", "gguf", "--quantize", "q8_0")
        assert outcome.code == 0
        assert "6 of 7 texts into other tokens than the tokenizer" in outcome.err

    @pytest.mark.parametrize("stage", ["convert", "quantise", "prove"])
    def test_interrupted(self, run, stage, capsys, monkeypatch):
        """Ctrl-C in the middle of each stage, after the merge, removes the temporary folders too."""

        def interrupt(*arguments, **options):
            raise KeyboardInterrupt

        before = left(run)
        if stage == "prove":
            monkeypatch.setattr(export_module, "prove", interrupt)
        else:
            monkeypatch.setattr(export_module, {"convert": "write_gguf", "quantise": "quantise"}[stage], interrupt)
        assert run_here(capsys, "export", run, "--to", "gguf").code == 130
        assert left(run) == before

    @pytest.mark.parametrize("kind", ["bf16", "q8_0"])
    def test_the_disk_fills_up(self, model, kind, capsys, small_files):
        before = left(model)
        outcome = run_here(capsys, "export", model, "--to", "gguf", "--quantize", kind)
        assert_refused(outcome, 1, "nothing was written", "make room, or write elsewhere (--output)")
        assert left(model) == before

    def test_no_room_is_known_before_anything_is_written(self, model, capsys, monkeypatch):
        usage = shutil.disk_usage(model)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
        before = left(model)
        outcome = run_here(capsys, "export", model, "--to", "gguf")
        assert_refused(outcome, 1, "GB are free there; make room")
        assert left(model) == before


class TestConverter:
    def test_is_llama_cpps_own_script(self, tmp_path, capsys):
        folder = save_family(tmp_path / "tiny-gemma", "gemma3")
        script = llama_cpp_source() / "convert_hf_to_gguf.py"
        outcome = run_here(capsys, "export", folder, "--to", "gguf", "--quantize", "q8_0", "--converter", script)
        assert outcome.code == 0, outcome.err
        assert left(folder / "gguf") == ["Modelfile", "tiny-gemma-Q8_0.gguf"]
        assert read_fields(folder / "gguf" / "tiny-gemma-Q8_0.gguf")["general.architecture"] == "gemma3"

    def test_that_fails_is_quoted(self, model, tmp_path, capsys):
        script = tmp_path / "convert_hf_to_gguf.py"
        script.write_text("import sys\nsys.exit('Model XForCausalLM is not supported')\n")
        before = left(model)
        outcome = run_here(capsys, "export", model, "--to", "gguf", "--converter", script)
        assert_refused(outcome, 1, "failed (exit code 1): Model XForCausalLM is not supported")
        assert left(model) == before


def test_where_float32_does_not_fit_the_model_is_computed_in_16_bits(model, capsys, monkeypatch):
    monkeypatch.setattr(divergence, "free_bytes", lambda device: 1)
    outcome = run_here(capsys, "export", model, "--to", "gguf", "--quantize", "f16")
    assert outcome.code == 0, outcome.err
    assert "computed in 16 bits" in outcome.out


@pytest.mark.slow
def test_a_real_model(tmp_path, capsys):
    """SmolLM2-135M-Instruct, about a minute: the figures of docs/export.md."""
    name, out = "builtin:smollm2-135m-instruct", tmp_path / "out"
    flags = ("--to", "gguf", "--dtype", "bfloat16", "--quantize", "f16,q8_0,q4_k_m", "--output", out, "--json")
    outcome = run_here(capsys, "export", name, *flags)
    assert outcome.code == 0, outcome.err
    files = json.loads(outcome.out)["files"]
    kl = [file["proof"]["divergence"]["kl"] for file in files]
    assert kl[0] < 1e-4 < kl[1] < 0.01 < kl[2] < 0.15
    assert not any(file["warnings"] for file in files)
    with GgufModel(out / "smollm2-135m-instruct-Q4_K_M.gguf") as model:
        question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        answer = model.detokenize(list(model.generate(model.tokenize(question), max_new_tokens=30)))
    assert b"Paris" in answer
