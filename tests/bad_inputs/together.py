"""Settings against each other, and the run folder."""

from pathlib import Path

from tests.bad_inputs.case import BadInput

# fmt: off
TOGETHER = (
    BadInput("sets the learning rate to 0", "train c.yaml --learning-rate 0",
        "learning_rate is 0; expected a number above 0, such as 8e-6 (2e-4 with LoRA) (learning_rate:"
        " --learning-rate)"),
    BadInput("sets beta below 0", "train c.yaml --beta -0.1",
        "beta is -0.1; expected a number from 0 upwards, such as 0.1 (beta: --beta)"),
    BadInput("leaves no room for an answer", "train c.yaml --max-length 1",
        "max_length is 1; expected at least 2 (max_length: --max-length)"),
    BadInput("sets a batch size of 0", "train c.yaml --per-device-train-batch-size 0",
        "per_device_train_batch_size is 0; expected at least 1 (per_device_train_batch_size:"
        " --per-device-train-batch-size)"),
    BadInput("accumulates over 0 batches", "train c.yaml --gradient-accumulation-steps 0",
        "gradient_accumulation_steps is 0; expected at least 1 (gradient_accumulation_steps:"
        " --gradient-accumulation-steps)"),
    BadInput("gives a micro-batch no tokens", "train c.yaml --max-tokens-per-microbatch 0",
        "max_tokens_per_microbatch is 0; expected a number from 1 upwards, auto or none"
        " (max_tokens_per_microbatch: --max-tokens-per-microbatch)"),
    BadInput("gives a micro-batch many tokens", "train c.yaml --max-tokens-per-microbatch many",
        "max_tokens_per_microbatch is 'many'; expected a number from 1 upwards, auto or none"
        " (max_tokens_per_microbatch: --max-tokens-per-microbatch)"),
    BadInput("asks for both 16-bit types", "train c.yaml --fp16 --bf16",
        "fp16 and bf16 are both on; choose one (bf16 where the hardware has it) (fp16: --fp16, bf16: --bf16)"),
    BadInput("asks for no step", "train c.yaml --max-steps 0 --num-train-epochs 0",
        "num_train_epochs and max_steps are both 0 or less, so nothing would be trained; set one (num_train_epochs:"
        " --num-train-epochs, max_steps: --max-steps)"),
    BadInput("gives beta in two ways", "train c.yaml --beta 0.2 --orpo-alpha 0.5",
        "beta is given together with orpo_alpha/orpo_beta; give beta alone (= alpha * beta there) (beta: --beta,"
        " orpo_alpha: --orpo-alpha)"),
    BadInput("quantises without an adapter", "train c.yaml --load-in-4bit",
        "load_in_4bit freezes the model, so it trains nothing without an adapter; add use_peft (load_in_4bit:"
        " --load-in-4bit)"),
    BadInput("quantises twice", "train c.yaml --load-in-4bit --load-in-8bit --use-peft",
        "load_in_8bit and load_in_4bit are both on; choose one (load_in_8bit: --load-in-8bit, load_in_4bit:"
        " --load-in-4bit)"),
    BadInput("asks for an adapter of rank 0", "train c.yaml --use-peft --lora-r 0",
        "lora_r is 0; expected at least 1 (lora_r: --lora-r)"),
    BadInput("asks for an unknown answer to spikes", "train c.yaml --loss-spikes stop",
        "--loss-spikes is 'stop'; expected one of 'warn', 'skip', 'ignore'"),
    BadInput("saves between steps, beside us", "train c.yaml --enable-jit-checkpoint",
        "enable_jit_checkpoint is on; it saves in the middle of a step; leave it out: oddsmith train stops with a"
        " checkpoint on SIGTERM by itself, and in Python StopOnRequest does (enable_jit_checkpoint:"
        " --enable-jit-checkpoint)"),
    BadInput("smooths labels", "train c.yaml --label-smoothing-factor 0.1",
        "label_smoothing_factor is 0.1; the loss of ORPO has no label smoothing; leave it out (label_smoothing_factor:"
        " --label-smoothing-factor)"),
    BadInput("gives the command what a script needs", "train c.yaml --batch-eval-metrics",
        "--batch-eval-metrics: batch_eval_metrics is for scripts in Python, without use for the command; remove it"),
    BadInput("names no type of numbers", "train c.yaml --dtype float8",
        "--dtype is 'float8'; expected one of 'auto', 'bfloat16', 'float16', 'float32'"),
    BadInput("names an unknown optimiser", "train c.yaml --optim adamm",
        "--optim is 'adamm'; expected one of 'adalomo', 'ademamix', 'grokadamw', another of 41 (`oddsmith train"
        " --help-all` names all)"),
    BadInput("takes an optimiser that makes no whole steps", "train c.yaml --optim lomo",
        "optim is lomo, which changes the weights within the backward pass, at every micro-batch: a step would not be"
        " whole, and a NaN could not be skipped; adafactor, paged_adamw_8bit or an adapter (LoRA) save memory, too"
        " (optim: --optim)"),
    BadInput("takes an optimiser that is not installed", "train c.yaml --optim grokadamw",
        "optim: grokadamw needs an optional dependency; install it with: pip install grokadamw",
        without=("grokadamw",)),
    BadInput("reports to a tracker that is not installed", "train c.yaml --report-to dagshub",
        "report_to: dagshub needs an optional dependency; install it with: pip install dagshub mlflow",
        without=("dagshub",)),
    BadInput("names an unknown schedule", "train c.yaml --lr-scheduler-type square",
        "--lr-scheduler-type is 'square'; expected one of 'linear', 'cosine', 'cosine_with_restarts', 'polynomial',"
        " 'constant', 'constant_with_warmup', 'inverse_sqrt', 'reduce_lr_on_plateau', 'cosine_with_min_lr',"
        " 'cosine_warmup_with_min_lr', 'warmup_stable_decay', 'greedy'"),
    BadInput("wants the best model without evaluations", "train c.yaml --load-best-model-at-end",
        "load_best_model_at_end compares evaluations, and eval_strategy is no; set eval_strategy to steps (with"
        " eval_steps) or epoch (load_best_model_at_end: --load-best-model-at-end)"),
    BadInput("wants the best model without checkpoints",
        "train c.yaml --load-best-model-at-end --eval-strategy epoch --save-strategy no",
        "load_best_model_at_end loads a checkpoint, and save_strategy is no; leave save_strategy out"
        " (load_best_model_at_end: --load-best-model-at-end, save_strategy: --save-strategy)"),
    BadInput("evaluates on nothing", "train c.yaml --eval-strategy steps --eval-steps 5",
        "evaluation is on, but pairs.jsonl is a single file and has no test split; set test_split_size (such as 0.1) or"
        " eval_dataset_name, or turn evaluation off with eval_strategy: no"),
    BadInput("streams without an end", "train c.yaml --dataset-streaming",
        "dataset_streaming does not know how many rows there are; set max_steps, the run's length (dataset_streaming:"
        " --dataset-streaming)"),
    BadInput("takes evaluation pairs from two places", "train c.yaml --test-split-size 1 --eval-dataset-name x",
        "test_split_size and eval_dataset_name are both given; choose where evaluation rows come from"),
    BadInput("holds out a share above 1", "train c.yaml --test-split-size 1.5",
        "test_split_size is 1.5; expected a share such as 0.1, or a whole number of rows"),
    BadInput("holds out more than there is", "train c.yaml --test-split-size 4",
        "test_split_size is 4, but there are 4 rows; leave some to train on"),
)
# fmt: on


def _with_notes(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def _with_run(path: Path) -> None:
    path.mkdir()
    (path / "run.yaml").write_text("beta: 0.1\n")


# fmt: off
RUN_FOLDER = (
    BadInput("names a file", "train c.yaml",
        "output_dir out is a file; expected a folder, or the name of a new one", {"out": "mine"}),
    BadInput("names a folder of something else", "train c.yaml",
        "output_dir out is not empty and holds no run (run.yaml); choose another folder", {"out": _with_notes}),
    BadInput("would replace a folder of something else", "train c.yaml --overwrite-output-dir",
        "output_dir out is not empty and holds no run (run.yaml); choose another folder", {"out": _with_notes}),
    BadInput("leaves the name empty", "train c.yaml --output-dir=",
        "output_dir (--output-dir) is empty; expected the name of a folder"),
    BadInput("names it like a flag", "train c.yaml --output-dir=--out",
        "output_dir (--output-dir) '--out': the name '--out' begins with a dash, so that other programs take it for a"
        " flag; choose another"),
    BadInput("names the folder it stands in", "train c.yaml --output-dir .",
        "output_dir . is not empty and holds no run (run.yaml); choose another folder"),
    BadInput("names a folder that holds a run", "train c.yaml",
        "output_dir out already holds a run; choose another folder, continue it with --resume, or replace it with"
        " --overwrite-output-dir",
        {"out": _with_run}),
    BadInput("names a path through a file", "train c.yaml --output-dir c.yaml/out",
        "output_dir c.yaml/out cannot be made: c.yaml is a file; expected a folder, or the name of a new one"),
)
# fmt: on
