"""Small chat templates with the peculiarities of the well-known ones, and a tokenizer for each."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer


@dataclass(frozen=True)
class ChatFormat:
    """A chat template, and what the tests expect of it."""

    name: str  # the model family that it is taken from
    template: str
    special: tuple[str, ...]  # the added tokens of its tokenizer
    end_of_turn: str | None  # the token that ends an assistant's turn; None where EOS must be appended
    tail: str  # what the template writes after the end of turn
    bos: str | None
    eos: str
    has_system: bool = True  # whether it takes a system turn
    response: Callable[[str], str] = str  # the text of a last answer, without the end of turn

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A byte-level tokenizer that writes this format; its pad token is its EOS."""
        return tiny_tokenizer(self.template, bos=self.bos, eos=self.eos, extra_special=self.special)


# A system turn of its own where none is given.
SMOLLM2 = ChatFormat(
    name="smollm2", template=(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    special=("<|im_start|>", "<|im_end|>"), end_of_turn="<|im_end|>", tail="\n", bos="<|im_start|>", eos="<|im_end|>",
)  # fmt: skip

# An empty think block in the last answer, none in earlier ones, whose thoughts are left out.
QWEN3 = ChatFormat(
    name="qwen3", template=(
        "{% set ns = namespace(last_query=messages|length - 1, found=false) %}"
        "{% for message in messages[::-1] %}{% if not ns.found and message.role == 'user' %}"
        "{% set ns.last_query = messages|length - 1 - loop.index0 %}{% set ns.found = true %}{% endif %}{% endfor %}"
        "{% for message in messages %}{% if message.role != 'assistant' %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% else %}{% set content = message.content %}{% set thoughts = '' %}"
        "{% if '</think>' in content %}"
        "{% set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{{ '<|im_start|>assistant\n' }}"
        "{% if loop.index0 > ns.last_query and (loop.last or thoughts) %}"
        "{{ '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
        "{% else %}{{ content }}{% endif %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{% endif %}"
    ),
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"), end_of_turn="<|im_end|>", tail="\n",
    bos=None, eos="<|im_end|>", response=lambda answer: "<think>\n\n</think>\n\n" + answer.lstrip("\n"),
)  # fmt: skip

# The template writes BOS itself; the end of turn is not the EOS of the tokenizer; contents are trimmed.
LLAMA3 = ChatFormat(
    name="llama3", template=(
        "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}"
        "{{ '<|eom_id|>' if message['tool_calls'] else '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"), end_of_turn="<|eot_id|>", tail="",
    bos="<|begin_of_text|>", eos="<|end_of_text|>", response=str.strip,
)  # fmt: skip

# No role headers, strict alternation, no system turn, no generation prompt.
MISTRAL = ChatFormat(
    name="mistral", template=(
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    special=("[INST]", "[/INST]"), end_of_turn="</s>", tail="", bos="<s>", eos="</s>", has_system=False,
    response=lambda answer: " " + answer,
)  # fmt: skip

# The assistant is called model, a system turn is refused, contents are trimmed.
GEMMA = ChatFormat(
    name="gemma", template=(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    special=("<start_of_turn>", "<end_of_turn>"), end_of_turn="<end_of_turn>", tail="\n", bos="<bos>", eos="<eos>",
    has_system=False, response=str.strip,
)  # fmt: skip

# An EOS after the last turn, behind the end of turn.
PHI3 = ChatFormat(
    name="phi3", template=(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), end_of_turn="<|end|>", tail="\n<|endoftext|>",
    bos="<s>", eos="<|endoftext|>",
)  # fmt: skip

# Plain text: no token ends a turn.
PLAIN = ChatFormat(
    name="plain", template=(
        "{% for message in messages %}{{ '### ' + message['role'] + ':\n' + message['content'] + '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
    ),
    special=(), end_of_turn=None, tail="", bos="<s>", eos="</s>", response=lambda answer: answer + "\n\n",
)  # fmt: skip

CHAT_FORMATS = (SMOLLM2, QWEN3, LLAMA3, MISTRAL, GEMMA, PHI3, PLAIN)
