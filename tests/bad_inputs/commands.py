"""The commands beside ``train``."""

from __future__ import annotations

from tests.bad_inputs.case import BadInput, folder, lines

PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0\x90wS\xde"

COMMANDS = (
    BadInput(
        "misspells the command",
        "trian c.yaml",
        ("No such command 'trian'. Did you mean 'train'? `oddsmith --help` tells which commands and flags there are."),
    ),
    BadInput("checks nothing", "data check", "no dataset is given; expected oddsmith data check DATASET"),
    BadInput(
        "checks a file that is not there",
        "data check pair.jsonl",
        "pair.jsonl: no such file; did you mean pairs.jsonl?",
    ),
    BadInput(
        "checks two datasets",
        "data check pairs.jsonl b.jsonl",
        "found 'b.jsonl'; expected a flag such as --model there",
    ),
    BadInput(
        "would write over a file",
        "data check pairs.jsonl --fix pairs.jsonl",
        "--fix pairs.jsonl: is there already; choose another name, or remove it first",
    ),
    BadInput(
        "gives a length without a model",
        "data check pairs.jsonl --max-length 64",
        "--max-length counts what a model sees; name it with --model MODEL",
    ),
    BadInput(
        "gives a length that is none",
        "data check pairs.jsonl --model model --max-length long",
        "--max-length is 'long'; expected a whole number",
    ),
    BadInput("measures nothing", "eval", "no model is given; expected oddsmith eval MODEL --dataset-name DATASET"),
    BadInput(
        "measures on nothing",
        "eval model",
        "dataset_name is missing; give the pairs to measure on with --dataset-name DATASET",
    ),
    BadInput(
        "measures a model that is not there",
        "eval ./nowhere --dataset-name pairs.jsonl",
        "./nowhere: nothing there; expected a model folder, a .gguf file or a hub id",
    ),
    BadInput("talks to nobody", "chat", "no model is given; expected oddsmith chat MODEL"),
    BadInput(
        "talks to a folder without a model",
        "chat empty --prompt Hi",
        (
            "empty: holds no model (config.json) and no adapter (adapter_config.json); expected a"
            " folder that save_pretrained wrote"
        ),
        {"empty": folder},
    ),
    BadInput(
        "says nothing",
        "chat model --prompt ' '",
        "the prompt is empty; give the question with --prompt TEXT, or pipe it in",
    ),
    BadInput(
        "asks for a negative temperature",
        "chat model --prompt Hi --temperature -1",
        "temperature is -1.0; expected a number from 0 (greedy), such as 0.7",
    ),
    BadInput(
        "asks for a temperature in words",
        "chat model --prompt Hi --temperature hot",
        "--temperature is 'hot'; expected a number",
    ),
    BadInput(
        "asks for an answer of no words",
        "chat model --prompt Hi --max-new-tokens 0",
        "max_new_tokens is 0; expected 1 or more",
    ),
    BadInput(
        "compares one model",
        "compare model",
        "two models are needed; expected oddsmith compare BASE TUNED --prompts FILE",
    ),
    BadInput("compares without prompts", "compare model model", "no prompts are given; expected --prompts FILE"),
    BadInput(
        "compares on a file that is not there",
        "compare model model --prompts nowhere.txt",
        "nowhere.txt: no such file; check the path",
    ),
    BadInput(
        "compares on an empty file",
        "compare model model --prompts p.txt",
        "p.txt: is empty; expected a prompt a line",
        {"p.txt": "\n"},
    ),
    BadInput(
        "compares on rows without prompts",
        "compare model model --prompts p.jsonl",
        (
            "p.jsonl, row 0: no prompt: found the columns a; expected a pair, turns, or one of"
            " prompt, messages, conversations, question, instruction"
        ),
        {"p.jsonl": lines({"a": 1})},
    ),
    BadInput(
        "answers no prompts at once",
        "compare model model --prompts p.txt --batch-size 0",
        "--batch-size is 0; expected 1 or more",
        {"p.txt": "Hi\n"},
    ),
    BadInput(
        "asks for an unknown format",
        "compare model model --prompts p.txt --format arena --output o",
        "--format is 'arena'; expected alpaca_eval or mt_bench",
        {"p.txt": "Hi\n"},
    ),
    BadInput(
        "asks for a format without a place",
        "compare model model --prompts p.txt --format mt_bench",
        ("--format and --output go together; expected --format alpaca_eval|mt_bench --output FOLDER"),
        {"p.txt": "Hi\n"},
    ),
    BadInput(
        "would write over a page",
        "compare model model --prompts p.txt --html c.yaml",
        "c.yaml: is there already; choose another name, or replace it with --overwrite",
        {"p.txt": "Hi\n"},
    ),
    BadInput("exports nothing", "export", "no run is given; expected oddsmith export RUN --to merged|gguf"),
    BadInput(
        "exports to nowhere",
        "export model",
        "--to is missing; expected merged (a model folder) or gguf (files for llama.cpp)",
    ),
    BadInput(
        "exports to an unknown format",
        "export model --to docx",
        "--to is 'docx'; expected merged (a model folder) or gguf (files for llama.cpp)",
    ),
    BadInput(
        "exports a run that is not there",
        "export ./nowhere --to merged",
        "./nowhere: nothing there; expected a model folder, a .gguf file or a hub id",
    ),
    BadInput(
        "exports an empty folder",
        "export empty --to gguf",
        (
            "empty: holds no model (config.json) and no adapter (adapter_config.json); expected a"
            " folder that save_pretrained wrote"
        ),
        {"empty": folder},
    ),
    BadInput(
        "quantises a merged model",
        "export model --to merged --quantize q4_k_m",
        "--quantize is for --to gguf; leave it out",
    ),
    BadInput(
        "asks for an unknown quantisation",
        "export model --to gguf --quantize q9",
        ("quantize is 'q9'; expected one or several of: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0"),
    ),
    BadInput(
        "merges into an unknown base",
        "export model --to merged --merge-into 32bit",
        "--merge-into is '32bit'; expected 16bit or dequantized",
    ),
    BadInput(
        "asks for an unknown type",
        "export model --to merged --dtype float8 --output m",
        "dtype is 'float8'; expected bfloat16, float16 or float32",
    ),
    BadInput(
        "diagnoses nothing",
        "diagnose",
        ("no run is given; expected oddsmith diagnose RUN (a folder, trainer_state.json or a log)"),
    ),
    BadInput(
        "diagnoses a run that is not there",
        "diagnose nowhere",
        (
            "nowhere is not there; expected a run folder, trainer_state.json, events.jsonl, a"
            " console log, or a CSV of W&B or TensorBoard"
        ),
    ),
    BadInput(
        "diagnoses a picture",
        "diagnose loss.png",
        (
            "loss.png: no metric found in it; expected a run folder, trainer_state.json,"
            " events.jsonl, a console log, or a CSV of W&B or TensorBoard"
        ),
        {"loss.png": PICTURE},
    ),
    BadInput(
        "diagnoses an empty folder",
        "diagnose empty",
        ("empty holds no metrics; expected events.jsonl, trainer_state.json, trainer_log.jsonl or CSV exports in it"),
        {"empty": folder},
    ),
    BadInput(
        "diagnoses a state that is none",
        "diagnose trainer_state.json",
        ("trainer_state.json has no log_history; expected the trainer_state.json that a Trainer saves"),
        {"trainer_state.json": '{"step": 1}'},
    ),
    BadInput(
        "diagnoses a state that was cut off",
        "diagnose trainer_state.json",
        ("trainer_state.json is no readable JSON (...); expected trainer_state.json"),
        {"trainer_state.json": '{"log_history": ['},
    ),
    BadInput(
        "watches runs that are not there",
        "monitor nowhere --once",
        "nowhere is not there; expected a run folder, or a folder of them",
    ),
    BadInput("wants the page as JSON", "monitor . --json", "--json belongs to --once; the page itself has no document"),
    BadInput("asks for an impossible port", "monitor . --port 70000", "--port is 70000; expected 0 to 65535"),
    BadInput("asks for a port in words", "monitor . --port http", "--port is 'http'; expected a whole number"),
    BadInput(
        "shows runs to everybody",
        "monitor . --host 0.0.0.0",
        (
            "--host 0.0.0.0 can be reached from other machines; set ODDSMITH_MONITOR_TOKEN to a"
            " secret of 16 characters or more, which the page is then opened with (/?token=...)"
        ),
    ),
    BadInput("serves nothing", "serve", "no model is given; expected oddsmith serve MODEL"),
    BadInput(
        "serves a model that is not there",
        "serve ./nowhere",
        "./nowhere: nothing there; expected a model folder, a .gguf file or a hub id",
    ),
    BadInput("serves on no port", "serve model --port http", "--port is 'http'; expected a whole number"),
    BadInput(
        "gives the demo another dataset",
        "demo --dataset-name pairs.jsonl",
        "--dataset-name is no setting of the demo, which brings its pairs and its adapter",
    ),
    BadInput(
        "puts the demo into a folder of something else",
        "demo --output-dir model",
        "output_dir model is not empty and holds no run (run.yaml); choose another folder",
    ),
)
