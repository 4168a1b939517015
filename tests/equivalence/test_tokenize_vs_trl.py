"""Plain strings become the tokens that TRL's ORPOTrainer makes of them."""

from types import SimpleNamespace

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from trl.data_utils import maybe_apply_chat_template, maybe_extract_prompt
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from oddsmith.data.formats import PreferencePair, to_pair
from oddsmith.data.prepare import prepare
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import TokenizedPair
from tests.pairs import assistant, user
from tests.tiny import CHATML, tiny_model, tiny_tokenizer

CORPUS = (
    "Question: what is the capital of France?\n\nAnswer: Paris is the capital of France.\n",
    "Question: name three colours, please.\nAnswer: red, green and blue are three colours.\n",
    "1. Wash the apples. 2. Cut the apples.\n\n3. Eat the apples, they're good!",
)
PAIRS = (
    ("Question: what is the capital of France?\nAnswer:", " Paris is the capital.", " France is a colour."),
    ("Question: what is the capital of France?\nAnswer: ", "Paris is the capital.", "red"),
    ("Name three colours", ": red, green and blue.", "?\n\nNo."),
    ("Wash the apples.\n", "\n1. Wash the apples.", "2. Eat the apples."),
    ("<s>Question: the capital", " Paris</s>", " Answer</s>"),
    ("Was ist das? ", "Äpfel und Öl – 🍎!", "日本語"),
    ("", "Paris", "red"),
    ("Eat the apples", "!", "?"),
    ("Wash the apples. " * 8, "Eat the apples, please. " * 4, "No."),
    ("Wash.", "Eat the apples, please. " * 12, "No, name three colours. " * 12),
)


def bpe_tokenizer(bos: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE with enough merges that words and prompt boundaries merge."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory) -> ORPOTrainer:
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS[:2]]
    folder = tmp_path_factory.mktemp("trl")
    return ORPOTrainer(
        tiny_model(vocab_size=340),
        ORPOConfig(str(folder), report_to=[], use_cpu=True, bf16=False, max_length=64),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=bpe_tokenizer("<s>"),
    )


def labels(pair: TokenizedPair, side: str) -> list[int]:
    ids = getattr(pair, f"{side}_ids")
    prompt = getattr(pair, f"{side}_prompt_tokens")
    return [-100] * prompt + ids[prompt : getattr(pair, f"{side}_end")]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: repr(pair[0][:12]))
@pytest.mark.parametrize("bos", ("<s>", None))
def test_strings(trl_trainer, pair, bos):
    trl_trainer.processing_class = tokenizer = bpe_tokenizer(bos)
    expected = trl_trainer.tokenize_row(dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)))
    (tokens,) = PairTokenizer(tokenizer, max_length=64).tokenize([PreferencePair(*pair)])
    for side in ("chosen", "rejected"):
        assert getattr(tokens, f"{side}_ids") == expected[f"{side}_input_ids"]
        assert labels(tokens, side) == expected[f"{side}_labels"]


SHARED = (
    ("The sky is blue.", "The sky is green."),
    ("Paris is the capital of France.", "Paris is  the capital of France."),
    ("Eat the apples, please.", "Eat the colours!"),
    ("日本語です。", "日本酒です。"),
    ("Äpfel und Öl", "Äpfel und 🍎"),
)


@pytest.mark.parametrize("bos", ("<s>", None))
@pytest.mark.parametrize("texts", SHARED, ids=lambda texts: texts[0][:12])
def test_words_that_both_texts_begin_with(trl_trainer, texts, bos):
    trl_trainer.processing_class = tokenizer = bpe_tokenizer(bos)
    row = dict(zip(("chosen", "rejected"), texts, strict=True))
    expected = trl_trainer.tokenize_row(maybe_extract_prompt(row))
    (tokens,) = PairTokenizer(tokenizer, max_length=64).tokenize([to_pair(row)])
    for side in ("chosen", "rejected"):
        assert getattr(tokens, f"{side}_ids") == expected[f"{side}_input_ids"]
        assert labels(tokens, side) == expected[f"{side}_labels"]


def test_no_prompt_ends_within_a_word(trl_trainer):
    """TRL cuts the word, and fails where the tokens of its beginning are not those of the whole."""
    trl_trainer.processing_class = tokenizer = bpe_tokenizer("<s>")
    row = {"chosen": "Name three colours", "rejected": "Name three columns"}
    with pytest.raises(ValueError, match="should have the same length"):
        trl_trainer.tokenize_row(maybe_extract_prompt(row))
    (tokens,) = PairTokenizer(tokenizer, max_length=64).tokenize([to_pair(row)])
    assert tokenizer.decode(tokens.chosen_ids[: tokens.chosen_prompt_tokens]) == "<s>Name three"
    assert tokenizer.decode(tokens.chosen_ids) == "<s>Name three colours</s>"


def test_the_pairs_merge_over_boundaries_and_are_cut():
    tokens = PairTokenizer(bpe_tokenizer("<s>"), max_length=64).tokenize([PreferencePair(*pair) for pair in PAIRS])
    assert any(pair.chosen_prompt_tokens != pair.rejected_prompt_tokens for pair in tokens)
    assert any(pair.chosen_cut and pair.rejected_cut for pair in tokens)


def test_encoder_decoder():
    tokenizer = bpe_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    trl = SimpleNamespace(is_encoder_decoder=True, processing_class=tokenizer, max_completion_length=128, max_length=64)
    for prompt, chosen, rejected in (PAIRS[0], PAIRS[2], PAIRS[5]):
        expected = ORPOTrainer.tokenize_row(trl, {"prompt": prompt, "chosen": chosen, "rejected": rejected})
        pair_tokenizer = PairTokenizer(tokenizer, max_length=64, is_encoder_decoder=True)
        (tokens,) = pair_tokenizer.tokenize([PreferencePair(prompt, chosen, rejected)])
        assert list(tokens.prompt_ids) == expected["prompt_input_ids"]
        assert labels(tokens, "chosen") == expected["chosen_labels"]
        assert labels(tokens, "rejected") == expected["rejected_labels"]


ASKED = "\n\nHuman: Is it far?\n\nAssistant: Yes.\n\nHuman: How far?\n\nAssistant:"
TRANSCRIPTS = {
    "implicit prompt": {"chosen": f"{ASKED} A mile.", "rejected": f"{ASKED} No."},
    "prompt column": {"prompt": ASKED, "chosen": " A mile.", "rejected": " No."},
    "repeated prompt": {"prompt": ASKED, "chosen": f"{ASKED} A mile.", "rejected": f"{ASKED} No."},
    "several turns": {
        "chosen": f"{ASKED} A mile.\n\nHuman: Thanks.\n\nAssistant: Welcome.", "rejected": f"{ASKED} No.",
    },
}  # fmt: skip


@pytest.mark.parametrize("row", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
@pytest.mark.parametrize("on_text", [None, False], ids=["without template", "text as it is"])
def test_hh_transcripts(trl_trainer, row, on_text):
    """Without a chat template, or where text stays as it is, they are the text that TRL trains on."""
    trl_trainer.processing_class = tokenizer = bpe_tokenizer("<s>")
    whole = {side: row[side].removeprefix(ASKED) for side in ("chosen", "rejected")}
    expected = trl_trainer.tokenize_row(maybe_extract_prompt({"prompt": ASKED, **whole}))
    if row.keys() == {"chosen", "rejected"}:
        assert maybe_extract_prompt(row)["prompt"] == ASKED
    if on_text is False:
        tokenizer.chat_template = CHATML
    pair_tokenizer = PairTokenizer(tokenizer, max_length=64, chat_template_on_text=on_text)
    prepared = prepare([row], pair_tokenizer, source="eval")
    (found,) = prepared.dataset
    for side in ("chosen", "rejected"):
        ids, prompt, end = (found[f"{side}_{part}"] for part in ("input_ids", "prompt_tokens", "end"))
        assert ids == expected[f"{side}_input_ids"]
        assert [-100] * prompt + ids[prompt:end] == expected[f"{side}_labels"]
    (said,) = [line for line in prepared.report.lines() if "as it is" in line or "without the chat template" in line]
    assert ("no chat template" in said) == (on_text is None)


def test_hh_transcripts_that_begin_alike(trl_trainer):
    """TRL takes the words that both answers begin with for the prompt; the ids are the same."""
    trl_trainer.processing_class = tokenizer = bpe_tokenizer("<s>")
    row = {"chosen": f"{ASKED} It is a mile.", "rejected": f"{ASKED} It is near."}
    expected = trl_trainer.tokenize_row(maybe_extract_prompt(row))
    (found,) = prepare([row], PairTokenizer(tokenizer, max_length=64), source="eval").dataset
    assert found["prompt"] == ASKED
    assert [found[f"{side}_input_ids"] for side in ("chosen", "rejected")] == [
        expected[f"{side}_input_ids"] for side in ("chosen", "rejected")
    ]


CHATS = (
    {"prompt": [user("Hi")], "chosen": [assistant("Hello")], "rejected": [assistant("Go")]},
    {"chosen": [user("Hi"), assistant("Hello")], "rejected": [user("Hi"), assistant("Go")]},
    {"prompt": "Hi", "chosen": " Hello", "rejected": " Go"},
)


@pytest.mark.parametrize("row", CHATS, ids=["chat", "implicit prompt", "text"])
def test_the_texts_in_a_dataset(row):
    tokenizer = tiny_tokenizer()
    expected = maybe_apply_chat_template(maybe_extract_prompt(row), tokenizer)
    (found,) = list(prepare([row], PairTokenizer(tokenizer, max_length=64), source="eval").dataset)
    assert {name: found[name] for name in ("prompt", "chosen", "rejected")} == expected
