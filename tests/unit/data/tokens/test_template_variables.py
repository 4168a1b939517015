"""A row may set variables of the chat template, and nothing else of its rendering."""

import pytest

from oddsmith.data.formats import to_pair
from oddsmith.data.tokens.rendering import Renderer
from oddsmith.errors import RowError
from tests.tiny import CHATML, tiny_tokenizer

ROW = {
    "prompt": [{"role": "user", "content": "Hi"}],
    "chosen": [{"role": "assistant", "content": "Hello."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}


def rendered(variables, template=CHATML):
    renderer = Renderer(tiny_tokenizer(template))
    return renderer.render(to_pair(ROW | {"chat_template_kwargs": variables}))


@pytest.mark.parametrize(
    "name",
    ["chat_template", "messages", "conversation", "tools", "add_generation_prompt", "continue_final_message",
     "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs", "self",
     "eos_token", "bos_token", "raise_exception", "strftime_now", "range", "namespace"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["{{ 'mine' }}", 1, None, True, ["a"], {"a": 1}])
def test_what_is_no_variable_of_the_template_is_refused(name, value):
    if value is None:  # as if it were not there: Arrow fills it in
        assert rendered({name: value}) == rendered({})
        return
    with pytest.raises(RowError, match=f"malformed chat_template_kwargs.*it sets {name}, which no row may"):
        rendered({name: value})


def test_variables_of_the_template_pass():
    template = "{{ 'thinking ' if enable_thinking else '' }}{{ documents | length }}" + CHATML
    assert rendered(
        {"enable_thinking": True, "documents": [{"title": "a", "text": "b"}]}, template
    ).chosen.text.startswith("thinking 1")
