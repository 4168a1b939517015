"""Models, tokenizers, chat templates and adapters."""

import json
from collections.abc import Callable
from pathlib import Path

from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaForSequenceClassification

from tests.bad_inputs.case import CONFIG, GOOD, BadInput, Content, folder, gone, lines
from tests.bad_inputs.pairs import CHAT
from tests.command import save_model
from tests.tiny import tiny_model, tiny_tokenizer

WEIGHTS = "model/model.safetensors"
CODE = {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}
CHATS: dict[str, Content] = {"pairs.jsonl": lines(CHAT, CHAT)}

ENDLESS = "{% for i in range(10**12) %}x{% endfor %}"


def _named(name: str) -> dict[str, Content]:
    return {"c.yaml": CONFIG.replace("path: model", f"path: {name}")}


def _changed(file: str, **fields: object) -> dict[str, Content]:
    """A JSON file of the model with other values; ``None`` takes one out."""

    def change(path: Path) -> None:
        values = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))

    return {file: change}


def _encoder(path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=264, **sizes)).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)


def _classifier(path: Path) -> None:
    LlamaForSequenceClassification(tiny_model().config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)


def _with_template(template: str) -> dict[str, Content]:
    return {"model": lambda path: save_model(path, chat_template=template), **CHATS}


def _without_template(path: Path) -> None:
    tiny_model().save_pretrained(path)
    tiny_tokenizer(None).save_pretrained(path)


def _of_other_vocabulary(**tokens: object) -> Callable[[Path], None]:
    """A model of 258 embeddings, and a tokenizer with one token more, with the id 258."""

    def make(path: Path) -> None:
        tiny_model(vocab_size=258).save_pretrained(path)
        tiny_tokenizer(**tokens).save_pretrained(path)

    return make


def _of_64_positions(path: Path) -> None:
    sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 256, "eos_token_id": 257}
    GPT2LMHeadModel(GPT2Config(vocab_size=264, **sizes)).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)


def _without_end(path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    tiny_model().save_pretrained(path)
    tokenizer.save_pretrained(path)


def _real(path: Path) -> None:
    save_model(path)


def _other_shapes(path: Path) -> None:
    """Weights of a wider model than the configuration states."""
    save_model(path)
    tiny_model(intermediate_size=48).save_pretrained(path / "wide")
    (path / "wide" / "model.safetensors").rename(path / "model.safetensors")


def _unfinished(path: Path) -> None:
    save_model(path)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _adapter(**settings: object) -> Callable[[Path], None]:
    """A folder with the settings of an adapter, and no weights."""

    def make(path: Path) -> None:
        path.mkdir()
        given = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], **settings}
        (path / "adapter_config.json").write_text(json.dumps(given))

    return make


# fmt: off
MODELS = (
    BadInput("names a folder that is not there", "train c.yaml",
        "./modle: nothing there (did you mean model?); expected a model folder, a .gguf file or a hub id",
        _named("./modle")),
    BadInput("names a model of the hub, without a connection", "train c.yaml",
        "someone/some-model: is no folder here, and the hub cannot be reached for it (no connection, or HF_HUB_OFFLINE"
        " is set); give a folder, a GGUF file or builtin:smollm2-135m-instruct",
        _named("someone/some-model")),
    BadInput("leaves the name empty", "train c.yaml --model-name-or-path=",
        "the model's name is empty; expected a model folder, a .gguf file or a hub id"),
    BadInput("writes a name that cannot be one", "train c.yaml",
        "some model!: is neither a folder here nor a possible name on the hub (owner/name)", _named("some model!")),
    BadInput("names an unknown built-in model", "train c.yaml",
        "builtin:llama: no such built-in model; there is builtin:smollm2-135m-instruct", _named("builtin:llama")),
    BadInput("names a file that is no GGUF", "train c.yaml",
        "model.bin: is a file but no GGUF; expected a model folder, a .gguf file or a hub id",
        {**_named("model.bin"), "model.bin": b"weights"}),
    BadInput("names an empty folder", "train c.yaml",
        "model: holds no model (config.json) and no adapter (adapter_config.json); expected a folder that"
        " save_pretrained wrote",
        {"model": folder}),
    BadInput("names the folder above the model", "train c.yaml",
        "models: holds no model (config.json) and no adapter (adapter_config.json); did you mean models/a?",
        {**_named("models"), "models/a/config.json": "{}"}),
    BadInput("gives a GGUF file that is none", "train c.yaml",
        "m.gguf: is no GGUF file: it does not begin with the letters GGUF",
        {**_named("m.gguf"), "m.gguf": b"GGML and more"}),
    BadInput("gives half a GGUF file", "train c.yaml",
        "m.gguf: is cut off or damaged: the header ends after the end of the file (8 bytes); fetch or export it again",
        {**_named("m.gguf"), "m.gguf": b"GGUF\x03\0\0\0"}),
    BadInput("gives an encoder", "train c.yaml",
        "model: is an encoder (bert); ORPO needs a model that generates text, such as Llama, Qwen or T5",
        {"model": _encoder}),
    BadInput("gives a classifier", "train c.yaml",
        "model: is a classifier (LlamaForSequenceClassification); ORPO needs a model that generates text",
        {"model": _classifier}),
    BadInput("gives a model that needs images", "train c.yaml",
        "model: idefics cannot be trained on pairs of text: it needs an image with every text",
        _changed("model/config.json", model_type="idefics")),
    BadInput("gives a model of an unknown type", "train c.yaml",
        "model: cannot be loaded: ...`llama9`...", _changed("model/config.json", model_type="llama9")),
    BadInput("gives a model without a type", "train c.yaml",
        "model: cannot be loaded: ...`model_type` key in its config.json...",
        _changed("model/config.json", model_type=None)),
    BadInput("damages config.json", "train c.yaml",
        "model: its config.json is damaged (...); fetch or copy it again", {"model/config.json": "{"}),
    BadInput("gives a model without weights", "train c.yaml",
        "model: holds no model.safetensors; fetch or copy the whole model. If it has other weights: pickles can run"
        " code and are not read here; convert them where you trust them: load the model in transformers, then"
        " save_pretrained writes safetensors",
        {WEIGHTS: gone}),
    BadInput("gives pickled weights", "train c.yaml",
        "model: holds pytorch_model.bin and no safetensors; pickles can run code and are not read here; convert them"
        " where you trust them: load the model in transformers, then save_pretrained writes safetensors",
        {WEIGHTS: gone, "model/pytorch_model.bin": b"PK"}),
    BadInput("gives a model with code of its own", "train c.yaml",
        "model: needs its own Python code; read that code, then give --trust-remote-code on the command line (in"
        " Python: trust_remote_code=True); it allows custom code",
        _changed("model/config.json", model_type="mine", auto_map=CODE)),
    BadInput("gives damaged weights", "train c.yaml",
        "model: its weights are damaged; fetch or copy them again", {WEIGHTS: b"no weights"}),
    BadInput("gives half the weights", "train c.yaml",
        "model: its weights are damaged; fetch or copy them again", {"model": _unfinished}),
    BadInput("gives weights of other shapes", "train c.yaml",
        "model: its weights do not have the shapes that its configuration states", {"model": _other_shapes}),
    BadInput("names an unknown attention", "train c.yaml --attn-implementation fast",
        'model: cannot be loaded: ...`attn_implementation="fast"` is not supported...', {"model": _real}),
    BadInput("wants 4 bits without bitsandbytes", "train c.yaml --load-in-4bit --use-peft",
        '4-bit loading needs an optional dependency; install it with: pip install "oddsmith[4bit]"', {"model": _real},
        without=("bitsandbytes",)),
)

# fmt: off
TOKENIZERS = (
    BadInput("gives a model without a tokenizer", "train c.yaml",
        "model: holds no tokenizer (tokenizer_config.json or tokenizer.json); save the model's tokenizer there",
        {"model/tokenizer.json": gone, "model/tokenizer_config.json": gone}),
    BadInput("damages tokenizer.json", "train c.yaml",
        "model: one of its JSON files is damaged; fetch or copy them again", {"model/tokenizer.json": "{"}),
    BadInput("gives conversations to a model without a chat template", "train c.yaml",
        "tokenizer 'model' has no chat template, but the rows are conversations; use an instruction-tuned model, set a"
        " template (chat_template: chatml, a .jinja file or a chat model; in Python also tokenizer.chat_template), or"
        " give prompt and answers as plain text",
        {"model": _without_template, **CHATS}),
    BadInput("mistypes the name of a chat template", "train c.yaml --chat-template chatlm",
        "chat_template is 'chatlm'; expected chatml, a file (.jinja), or a model that has a chat template (chatlm:"
        " ...)",
        {"model": _without_template, **CHATS}),
    BadInput("names a chat template that is not there", "train c.yaml --chat-template chat.jinja",
        "chat_template is 'chat.jinja', a file that cannot be read as text: [Errno 2] No such file or directory:"
        " 'chat.jinja'",
        {"model": _without_template, **CHATS}),
    BadInput("takes the chat template of a model that has none", "train c.yaml --chat-template model",
        "chat_template is 'model', a model that has no chat template itself; name another",
        {"model": _without_template, **CHATS}),
    BadInput("gives a system message to plain text", "train c.yaml --system-prompt Be-kind.",
        "train: system_prompt is set, but 4 rows of 4 are text that no chat template renders; leave system_prompt out,"
        " write it into the text, or set chat_template_on_text: true",
        {"model": _real}),
    BadInput("gives a chat template that says nothing", "train c.yaml",
        "chat template of 'model': it renders no plain question and answer (the answer is missing from its text); set a"
        " template meant for chats",
        _with_template("{{ bos_token }}")),
    BadInput("gives a chat template that refuses all", "train c.yaml",
        'train, row 0: refused by the chat template: the template says "no" to a conversation of user; expected one'
        " that it can render; bad_rows=drop leaves such rows out",
        _with_template("{{ raise_exception('no') }}")),
    BadInput("gives a chat template that is no Jinja", "train c.yaml",
        "train, row 0: refused by the chat template: the template says \"Expected an expression, got 'end of statement"
        " block'\" to a conversation of user; expected one that it can render; bad_rows=drop leaves such rows out",
        _with_template("{% for message in %}")),
    BadInput("gives a chat template without end", "train c.yaml",
        'train, row 0: refused by the chat template: the template says "OverflowError: Range too big. ..." to a'
        " conversation of user; expected one that it can render; bad_rows=drop leaves such rows out",
        _with_template(ENDLESS)),
    BadInput("gives a chat template that grows", "train c.yaml",
        "chat template of 'model': it makes a value of more than 4,194,304 characters; such a template is damaged or"
        " hostile, set another (tokenizer.chat_template)",
        _with_template("{{ 'x' * 10**10 }}")),
    BadInput("gives a chat template that looks for more", "train c.yaml",
        "train, row 0: refused by the chat template: the template says \"access to attribute '__class__' of 'list'"
        ' object is unsafe." to a conversation of user; expected one that it can render; bad_rows=drop leaves such rows'
        " out",
        _with_template("{{ messages.__class__.__mro__ }}")),
    BadInput("gives a tokenizer without an end of text", "train c.yaml",
        "tokenizer 'model' has no EOS token, so an answer would have no end to learn; set tokenizer.eos_token",
        {"model": _without_end}),
    BadInput("adds a token to the tokenizer alone", "train c.yaml",
        "train, row 1: token without embedding: token 258 ('<extra>') has no row among the model's 258 embeddings; use"
        " the model's own tokenizer, or add rows: model.resize_token_embeddings(259)",
        {"model": _of_other_vocabulary(extra_special=("<extra>",)),
         "pairs.jsonl": lines(GOOD, {**GOOD, "chosen": " <extra> Because."}, GOOD)}),
    BadInput("adds a pad token to the tokenizer alone", "train c.yaml",
        "the pad token '<pad>' has the id 258, but the model has 258 embeddings (ids 0 to 257); pad with a token that"
        " has one, such as '<|im_end|>' (tokenizer.pad_token, or pad_token in tokenizer_config.json), or add rows:"
        " model.resize_token_embeddings(259)",
        {"model": _of_other_vocabulary(pad="<pad>")}),
    BadInput("pads with an id that the model does not have", "train c.yaml --padding-value 264",
        "padding_value is 264, but the model has 264 embeddings (ids 0 to 263); leave it out, or name one of them",
        {"model": _real}),
    BadInput("gives pairs longer than the model's positions", "train c.yaml",
        "train, row 1: too many tokens: the model's 64 positions are too few for 106 tokens; set max_length to 64"
        " (--max_length 64)",
        {"model": _of_64_positions, "pairs.jsonl": lines(GOOD, {**GOOD, "chosen": 100 * "x"}, GOOD)}),
)

ADAPTERS = (
    BadInput("misspells a module for the adapter", "train c.yaml --use-peft --lora-target-modules k_porj",
        "LoRA target k_porj is not in this model (llama); expected all-linear or some of: q_proj, k_proj, v_proj,"
        " o_proj, gate_proj, up_proj, down_proj",
        {"model": _real}),
    BadInput("gives an adapter that names no base", "train c.yaml",
        "model: its adapter_config.json names no base model; add base_model_name_or_path there", {"model": _adapter()}),
    BadInput("gives an adapter whose base is gone", "train c.yaml",
        "model: is an adapter whose base model cannot be found: ./base: nothing there; expected a model folder, a .gguf"
        " file or a hub id (base_model_name_or_path in its adapter_config.json: change it there)",
        {"model": _adapter(base_model_name_or_path="./base")}),
    BadInput("gives an adapter of an unknown kind", "train c.yaml",
        "model: its adapter_config.json cannot be read by PEFT ... ('LORE')",
        {"model": _adapter(peft_type="LORE", base_model_name_or_path="m")}),
    BadInput("damages adapter_config.json", "train c.yaml",
        "model: its adapter_config.json is damaged (...); fetch or copy it again", {"model/adapter_config.json": "{"}),
)
# fmt: on
# fmt: on
