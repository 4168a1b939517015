"""Modelfiles for Ollama: the chat template in its own language, exactly what the Jinja template writes, or none."""

import re

import pytest

from oddsmith.export.gguf.modelfile import chat_pattern, write_modelfile
from tests.templates import CHAT_FORMATS, GEMMA, LLAMA3, MISTRAL, SMOLLM2
from tests.tiny import tiny_tokenizer

TALK = [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Air scatters blue light."},
    {"role": "user", "content": "And at dusk?"},
]


def run_go_template(template: str, messages: list[dict[str, str]]) -> str:
    """What Ollama writes: the few actions of Go's templates that are used, over its list of messages."""
    loop = re.search(r"\{\{ range \$i, \$_ := \.Messages \}\}(.*)\{\{ end \}\}$", template, flags=re.DOTALL)
    opening, body = template[: loop.start()], loop[1]
    text = ""
    if opening and not any(message["role"] == "system" for message in messages):
        text += re.fullmatch(r"\{\{ if not \.System \}\}(.*)\{\{ end \}\}", opening, flags=re.DOTALL)[1]
    parts = re.fullmatch(
        r'\{\{ \$last := eq \(len \(slice \$\.Messages \$i\)\) 1 \}\}\{\{ if eq \.Role "user" \}\}(.*)'
        r'\{\{ else if eq \.Role "system" \}\}(.*)\{\{ else \}\}(.*)\{\{ end \}\}',
        body,
        flags=re.DOTALL,
    )
    branches = dict(zip(("user", "system", "assistant"), parts.groups(), strict=True))
    for i, message in enumerate(messages):
        branch = branches[message["role"]]
        is_last = i == len(messages) - 1
        branch = re.sub(r"\{\{ if not \$last \}\}(.*)\{\{ end \}\}", "" if is_last else r"\1", branch, flags=re.DOTALL)
        text += branch.replace("{{ .Content }}", message["content"])
    return text.replace('{{ "{{" }}', "{{")


@pytest.mark.parametrize("chat_format", CHAT_FORMATS, ids=lambda chat_format: chat_format.name)
def test_the_template_writes_what_the_jinja_template_writes(chat_format):
    tokenizer = chat_format.tokenizer()
    template = chat_pattern(tokenizer, begins=False).go_template()
    conversations = [TALK[:1], TALK]
    if chat_format.has_system:
        conversations += [[{"role": "system", "content": "Be brief."}, *turns] for turns in (TALK[:1], TALK)]
    for messages in conversations:
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert run_go_template(template, messages) == expected


def test_a_begin_token_that_is_added_anyway_is_not_written_twice():
    tokenizer = LLAMA3.tokenizer()
    assert "<|begin_of_text|>" in chat_pattern(tokenizer, begins=False).go_template()
    assert "<|begin_of_text|>" not in chat_pattern(tokenizer, begins=True).go_template()


def test_tokens_that_end_a_turn_are_not_cut_in_two():
    assert chat_pattern(LLAMA3.tokenizer(), begins=False).answer_after == "<|eot_id|>"
    assert chat_pattern(SMOLLM2.tokenizer(), begins=False).answer_after == "<|im_end|>"
    assert chat_pattern(MISTRAL.tokenizer(), begins=False).lead == " "


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",  # counts
        "{% for m in messages %}{{ m.role }} says {{ m.content | upper }}\n{% endfor %}",  # changes what was said
        "{{ messages[-1].content }}",  # forgets
        "{{ raise_exception('no') }}",
        '{% for m in messages %}"""{{ m.content }}{% endfor %}',  # cannot be quoted
    ],
)
def test_a_template_that_is_not_that_simple_has_no_pattern(template):
    assert chat_pattern(tiny_tokenizer(template), begins=False) is None


def test_braces_are_written_as_they_are():
    template = "{% for m in messages %}{{ '{{' + m.role + '}}' + m.content + '<|im_end|>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '{{assistant}}' }}{% endif %}"
    found = chat_pattern(tiny_tokenizer(template), begins=False).go_template()
    assert '{{ "{{" }}user}}{{ .Content }}' in found


def test_the_file_as_a_whole():
    text = write_modelfile("tiny-Q8_0.gguf", GEMMA.tokenizer(), begins=True, others=["tiny-F16.gguf"])
    lines = text.splitlines()
    assert lines[0].startswith("# Written by Oddsmith")
    assert "tiny-F16.gguf" in lines[1]
    assert lines[2] == "FROM ./tiny-Q8_0.gguf"
    assert lines[3].startswith('TEMPLATE """{{ range')
    assert lines[-2:] == ['PARAMETER stop "<end_of_turn>"', 'PARAMETER stop "<eos>"']
    assert "SYSTEM" not in text


def test_without_a_chat_template():
    text = write_modelfile("base.gguf", tiny_tokenizer(None), begins=False)
    assert "TEMPLATE" not in text
    assert 'PARAMETER stop "<|im_end|>"' in text
