"""Settings: in a file, and as flags."""

from tests.bad_inputs.case import CONFIG, BadInput, Content, folder

ALIASES = "a: &a [x, x]\n" + "".join(f"b{i}: [*a, *a, *a, *a]\n" for i in range(4))


def _in_c(text: str | bytes) -> dict[str, Content]:
    return {"c.yaml": text}


def _added(line: str) -> dict[str, Content]:
    return {"c.yaml": f"{CONFIG}{line}\n"}


# fmt: off
IN_A_FILE = (
    BadInput("names a file that is not there", "train nowhere.yaml",
        "nowhere.yaml: no such file or directory; expected a YAML file of settings"),
    BadInput("names a folder", "train c.yaml",
        "c.yaml: is a directory; expected a YAML file of settings", {"c.yaml": folder}),
    BadInput("leaves the file empty", "train c.yaml",
        "c.yaml: is empty; expected lines such as `beta: 0.1`", _in_c("# nothing yet\n")),
    BadInput("writes a list", "train c.yaml",
        "c.yaml:1: found a list; expected lines such as `beta: 0.1`", _in_c("- beta\n- 0.1\n")),
    BadInput("forgets a bracket", "train c.yaml",
        "c.yaml:3: not valid YAML: expected ',' or ']', but got '<stream end>'",
        _in_c("beta: 0.1\nreport_to: [wandb\n")),
    BadInput("indents with a tab", "train c.yaml",
        "c.yaml:2: not valid YAML: found character '\\t' that cannot start any token",
        _in_c("datasets:\n\t- path: a.jsonl\n")),
    BadInput("saves the file as Latin-1", "train c.yaml",
        "c.yaml:2: byte 23 is not UTF-8; save the file as UTF-8", _in_c(b"beta: 0.1\nrun_name: caf\xe9\n")),
    BadInput("gives a setting twice", "train c.yaml",
        "c.yaml:3: beta is given twice, first in line 1; remove one", _in_c("beta: 0.1\nseed: 1\nbeta: 0.2\n")),
    BadInput("asks YAML to run code", "train c.yaml",
        "c.yaml:1: found the tag !!python/object/apply:os.system; plain values need no tag, remove it",
        _in_c("seed: !!python/object/apply:os.system [id]\n")),
    BadInput("repeats values by too many aliases", "train c.yaml",
        "c.yaml:4: more than 8 aliases (*a); write the values out", _in_c(ALIASES)),
    BadInput("nests lists without end", "train c.yaml",
        "c.yaml:1: nested more than 32 levels deep", _in_c("report_to: " + "[" * 40 + "]" * 40)),
    BadInput("writes a character that no file name has", "train c.yaml",
        "c.yaml:1: found '\\x00', which no file name can have; remove it", _in_c('dataset_name: "a\\0b"\n')),
    BadInput("gives a dataset for the settings", "train pairs.jsonl",
        "pairs.jsonl:2: not valid YAML: expected '<document start>', but found '{'"),
    BadInput("names an enormous file", "train c.yaml",
        "c.yaml: is larger than 200,000 bytes; expected a short YAML file of settings", _in_c("#" * 200_001)),
    BadInput("puts two documents into the file", "train c.yaml",
        "c.yaml:2: not valid YAML: but found another document", _in_c("beta: 0.1\n---\nbeta: 0.2\n")),
    BadInput("misspells a setting", "train c.yaml",
        "c.yaml:6: unknown setting learnin_rate; did you mean learning_rate?", _added("learnin_rate: 1e-5")),
    BadInput("uses another trainer's name of it", "train c.yaml",
        "c.yaml:6: unknown setting cutoff_len; did you mean max_length?", _added("cutoff_len: 512")),
    BadInput("misspells several settings, in the file and as flags", "train c.yaml --bta 0.1 --quickly",
        "unknown settings c.yaml:6: learnin_rate (did you mean learning_rate?), c.yaml:7: epochs (did you mean"
        " num_train_epochs?), --bta (did you mean --beta?), --quickly; `oddsmith train --help-all` lists all settings",
        _added("learnin_rate: 1e-5\nepochs: 2")),
    BadInput("asks for a longer warm-up than the run", "train c.yaml",
        "c.yaml:6: warmup_ratio is 10; expected a share of all steps, 0 to 1 (warmup_steps takes a number of steps)",
        _added("warmup_ratio: 10")),
    BadInput("keeps the beginnings of long prompts", "train c.yaml",
        "c.yaml:6: truncation_mode is 'keep_start'; a prompt that is too long is cut from the left, down to"
        " max_prompt_length; leave it out, and shorten the prompts yourself where their beginnings should be kept",
        _added("truncation_mode: keep_start")),
    BadInput("puts a flag of the command into the file", "train c.yaml",
        "c.yaml:6: resume is a flag of the command, no setting; give --resume", _added("resume: auto")),
    BadInput("lets a file allow code", "train c.yaml",
        "c.yaml:6: a file cannot allow a model to run code of its own; read that code, then give --trust-remote-code on"
        " the command line",
        _added("trust_remote_code: true")),
    BadInput("hides code in the model's options", "train c.yaml",
        "c.yaml:6: model_init_kwargs holds trust_remote_code; give --trust-remote-code on the command line",
        _added("model_init_kwargs: {trust_remote_code: true}")),
    BadInput("misspells a model's option", "train c.yaml",
        "model_init_kwargs: with these arguments (use_cach) the model cannot be loaded: TypeError"
        " LlamaForCausalLM.__init__() got an unexpected keyword argument 'use_cach'",
        _added("model_init_kwargs: {use_cach: false}")),
    BadInput("gives a model's option another type", "train c.yaml",
        "model_init_kwargs: dtype is 16; expected one of 'auto', 'bfloat16', 'float16', 'float32', 'float64'"
        " (model_init_kwargs: c.yaml:6)",
        _added("model_init_kwargs: {dtype: 16}")),
    BadInput("reports to what is no tracker", "train c.yaml",
        "report_to: 'wandbb' is no tracker; did you mean wandb? (report_to: c.yaml:6)", _added("report_to: [wandbb]")),
    BadInput("reports to nobody and to somebody", "train c.yaml",
        "report_to has none beside other trackers; give it alone, or leave it out (report_to: c.yaml:6)",
        _added("report_to: [none, os]")),
    BadInput("gives a text for a number", "train c.yaml",
        "c.yaml:6: beta is the text 'big'; expected a number", _added("beta: big")),
    BadInput("gives a fraction for a whole number", "train c.yaml",
        "c.yaml:6: max_steps is 1.5; expected a whole number", _added("max_steps: 1.5")),
    BadInput("leaves a value out", "train c.yaml",
        "c.yaml:6: seed is empty (null); expected a whole number", _added("seed:")),
    BadInput("gives a number for a name", "train c.yaml",
        "c.yaml:6: run_name is 5; expected a text", _added("run_name: 5")),
    BadInput("gives numbers for names", "train c.yaml",
        "c.yaml:6: lora_target_modules is the list [1, 2]; expected a list of texts",
        _added("lora_target_modules: [1, 2]")),
    BadInput("gives a text for a list", "train c.yaml",
        "c.yaml:6: datasets is the text 'a.jsonl'; expected a list of mappings", _added("datasets: a.jsonl")),
    BadInput("gives a word that is no choice", "train c.yaml",
        "c.yaml:6: nll_on is the text 'all'; expected 'sequence' or 'response'", _added("nll_on: all")),
    BadInput("gives a number that is none", "train c.yaml",
        "c.yaml:6: learning_rate is nan; expected a number", _added("learning_rate: .nan")),
    BadInput("gives a setting in both spellings", "train c.yaml",
        "c.yaml:7: torch_dtype and dtype are one setting, with two values; remove torch_dtype",
        _added("dtype: auto\ntorch_dtype: bf16")),
    BadInput("stops early without evaluations", "train c.yaml",
        "early_stopping_patience counts evaluations, and eval_strategy is no; set eval_strategy to steps (with"
        " eval_steps) or epoch (early_stopping_patience: c.yaml:6)",
        _added("early_stopping_patience: 3")),
    BadInput("gives a threshold without patience", "train c.yaml",
        "early_stopping_threshold has no effect without early_stopping_patience; give both (early_stopping_threshold:"
        " c.yaml:6)",
        _added("early_stopping_threshold: 0.1")),
    BadInput("has no patience", "train c.yaml",
        "early_stopping_patience is 0; expected at least 1 (early_stopping_patience: c.yaml:6)",
        _added("early_stopping_patience: 0")),
    BadInput("names no type in the model's options", "train c.yaml",
        "model_init_kwargs: torch_dtype is 'bf-16'; expected one of 'auto', 'bfloat16', 'float16', 'float32', 'float64'"
        " (model_init_kwargs: c.yaml:6)", _added("model_init_kwargs: {torch_dtype: bf-16}")),
)

# fmt: off
FLAGS = (
    BadInput("gives nothing at all", "train",
        "model_name_or_path is missing; give a hub id, a folder, a GGUF file or builtin:..."),
    BadInput("names no data", "train --model-name-or-path model",
        "dataset_name is missing; give a hub id, a file, a folder or builtin:house-style"),
    BadInput("gives two files of settings", "train c.yaml d.yaml",
        "found c.yaml and d.yaml; expected one configuration file, and flags after it"),
    BadInput("misspells a flag", "train c.yaml --bta 0.1", "unknown flag --bta; did you mean --beta?"),
    BadInput("uses another program's name of it", "train c.yaml --lr 1e-5",
        "unknown flag --lr; did you mean --learning-rate?"),
    BadInput("invents a flag", "train c.yaml --quickly",
        "unknown flag --quickly; `oddsmith train --help-all` lists all settings"),
    BadInput("writes one dash", "train c.yaml -o out", "unknown flag -o; every flag begins with two dashes"),
    BadInput("forgets the value", "train c.yaml --beta",
        "--beta has no value; expected one after it, as in --beta VALUE"),
    BadInput("gives a word for a number", "train c.yaml --beta big", "--beta is 'big'; expected a number"),
    BadInput("gives no number", "train c.yaml --learning-rate nan", "--learning-rate is 'nan'; expected a number"),
    BadInput("gives a number of hundreds of digits", f"train c.yaml --seed {'9' * 30}",
        "--seed is '999999999999999999999999999999'; expected a whole number"),
    BadInput("switches off what is no switch", "train c.yaml --no-beta",
        "--no-beta: beta is no switch; expected --beta VALUE"),
    BadInput("wants all rows of no dry run", "train c.yaml --full", "--full is about --dry-run; give both, or neither"),
    BadInput("gives a switch a value", "train c.yaml --dry-run=yes", "--dry-run takes no value; found 'yes'"),
    BadInput("gives no JSON for a mapping", "train c.yaml --lr-scheduler-kwargs min_lr=1",
        "--lr-scheduler-kwargs is 'min_lr=1'; expected a mapping as JSON"),
    BadInput("asks for no processes", "train c.yaml --num-processes 0",
        "--num-processes is '0'; expected a whole number from 1 upwards"),
    BadInput("shards on a CPU", "train c.yaml --fsdp",
        "fsdp is on, which takes an accelerator for each process, and ...: each process would hold the whole model;"
        " leave fsdp out to train on CPUs"),
    BadInput("shards on a CPU, and tries it first", "train c.yaml --fsdp --dry-run",
        "fsdp is on, which takes an accelerator for each process, and ...: each process would hold the whole model;"
        " leave fsdp out to train on CPUs"),
    BadInput("asks for processes by a word", "train c.yaml --num-processes all",
        "--num-processes is 'all'; expected a whole number from 1 upwards"),
    BadInput("asks for a time that is over", "train c.yaml --time-limit 0s",
        "--time-limit is '0s'; expected a time such as 3h50m, 45m, 90s, 3:50:00 or 1-02:00:00"),
    BadInput("leaves out the settings of a run", "train --resume",
        "model_name_or_path is missing; give a hub id, a folder, a GGUF file or builtin:..."),
    BadInput("gives no time for a time", "train c.yaml --time-limit soon",
        "--time-limit is 'soon'; expected a time such as 3h50m, 45m, 90s, 3:50:00 or 1-02:00:00"),
)
# fmt: on
# fmt: on
