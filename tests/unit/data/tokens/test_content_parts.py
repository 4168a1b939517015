"""Templates of models that read images: a message is text, or a list of parts, as the template reads it."""

import pytest

from oddsmith.data.formats.pairs import to_pair
from oddsmith.data.tokens.content_parts import as_template_reads
from oddsmith.data.tokens.rendering import Renderer
from tests.tiny import CHATML, tiny_tokenizer

# As of SmolVLM and Idefics 3, LLaVA, and Qwen2.5-VL, which reads both.
SMOLVLM = (
    "{% for message in messages %}<|im_start|>{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}<image>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
QWEN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
    "{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROW = {
    "prompt": [{"role": "user", "content": "What is red?"}],
    "chosen": [{"role": "assistant", "content": "A rose."}],
    "rejected": [{"role": "assistant", "content": "The sky."}],
}


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        (SMOLVLM, "<|im_start|>User: What is red?<|im_end|>\n", "<|im_start|>Assistant: A rose.<|im_end|>\n"),
        (LLAVA, "USER: What is red?<|im_end|>ASSISTANT: ", "A rose.<|im_end|>"),
        (QWEN, "<|im_start|>user\nWhat is red?<|im_end|>\n<|im_start|>assistant\n", "A rose.<|im_end|>\n"),
    ],
    ids=["smolvlm", "llava", "qwen"],
)
def test_a_pair_is_written_whole(template, prompt, answer):
    rendered = Renderer(tiny_tokenizer(template)).render(to_pair(ROW))
    assert rendered.chosen.text == prompt + answer
    assert not any(rendered.left_out[0])


@pytest.mark.parametrize("template", [CHATML, QWEN, None], ids=["chatml", "qwen", "none"])
def test_text_stays_text_where_the_template_reads_it(template):
    assert as_template_reads(tiny_tokenizer(template), ROW["prompt"]) == ROW["prompt"]


def test_an_answer_of_several_turns_is_told_apart():
    follow_up = [{"role": "user", "content": "And blue?"}, {"role": "assistant", "content": "The sea."}]
    renderer = Renderer(tiny_tokenizer(LLAVA))
    rendered = renderer.render(to_pair({**ROW, "chosen": ROW["chosen"] + follow_up}))
    (gap,) = rendered.chosen.gaps
    assert rendered.chosen.text[slice(*gap)] == "USER: And blue?<|im_end|>ASSISTANT: "
    assert renderer.end_of_turn == "<|im_end|>"
