"""Chat templates that would take all the time or memory there is, and what ordinary ones lose by the guard: nothing."""

import time
import tracemalloc

import pytest
from jinja2.exceptions import SecurityError, TemplateError
from transformers.utils import chat_template_utils

from oddsmith.data.formats import to_pair
from oddsmith.data.templates.environment import guard_chat_templates
from oddsmith.data.templates.limits import MAX_WORK, NODE_WORK, LimitReached
from oddsmith.data.tokens.rendering import Renderer
from oddsmith.errors import ModelError, RowError
from oddsmith.inference.chat.with_transformers import TransformersBackend
from tests.pairs import assistant, user
from tests.templates import CHAT_FORMATS
from tests.tiny import CHATML, tiny_model, tiny_tokenizer

CONVERSATION, REJECTED = [user("Hi"), assistant("Hello")], [user("Hi"), assistant("No")]
TWICE = "{% for i in range(60) %}{% set ns.x = OF %}{% endfor %}{{ ns.x }}"

GROWING = {
    "a text times a number": "{{ 'a' * 10**9 }}",
    "times a number that is computed": "{% set n = messages|length * 10**9 %}{{ 'a' * n }}",
    "a list times a number": "{{ ([1] * 10**9)|length }}",
    "the width of a percent format": "{{ '%1000000000d' % 1 }}",
    "a width that is computed": "{{ '%*d' % (10**9, 1) }}",
    "the filter format": "{{ '%1000000000d'|format(1) }}",
    "a long text often": "{{ ('%s' * 100000)|format('a' * 100000) }}",
    "the width in braces": "{{ '{:1000000000}'.format(1) }}",
    "braces in braces": "{{ '{:{}}'.format(1, 10**9) }}",
    "a text in braces often": "{{ ('{0}' * 100000).format('a' * 100000) }}",
    "a long indentation": "{{ 'a\nb'|indent(10**9) }}",
    "a long indentation of JSON": "{{ {'a': [1]}|tojson(indent=10**9) }}",
    "the date, wide": "{{ strftime_now('%1000000000d') }}",
    "joined by a long text": "{{ (['b'] * 100000)|join('a' * 100000) }}",
    "joined as a method": "{{ ('a' * 100000).join(['b'] * 100000) }}",
    "joined while it is made": "{{ ('a' * 100000).join(range(99999)|map('string')) }}",
    "many empty places": "{{ [1]|batch(10**9, 'a')|list }}",
    "many slices": "{{ [1]|slice(10**9)|list }}",
    "rounded to many places": "{{ 1.5|round(10**9, 'ceil') }}",
    "text that doubles": "{% set ns = namespace(x='a') %}" + TWICE.replace("OF", "ns.x + ns.x"),
    "text that doubles, with ~": "{% set ns = namespace(x='a') %}" + TWICE.replace("OF", "ns.x ~ ns.x"),
    "text that is replaced by more": "{% set ns = namespace(x='a') %}"
    + TWICE.replace("OF", "ns.x.replace('a', 'aaa')"),
    "the same with the filter": "{% set ns = namespace(x='a') %}" + TWICE.replace("OF", "ns.x|replace('a', 'aaa')"),
    "a block that doubles": "{% set x %}a{% endset %}" + "{% set x %}{{ x }}{{ x }}{{ x }}{{ x }}{% endset %}" * 30,
    "lists in lists": "{% set ns = namespace(x=[1]) %}" + TWICE.replace("OF", "[ns.x, ns.x]"),
    "mappings in mappings": "{% set ns = namespace(x={}) %}" + TWICE.replace("OF", "{'a': ns.x, 'b': ns.x}"),
    "a tuple as a key": "{% set ns = namespace(x=(1,)) %}" + TWICE.replace("OF", "(ns.x, ns.x)"),
    "a number squared": "{% set ns = namespace(x=3) %}" + TWICE.replace("OF", "ns.x * ns.x"),
    "a number to a power": "{{ 10 ** (10 ** 10) }}",
    "slices that are kept": (
        "{% set s = 'a' * 4000000 %}{% set ns = namespace(l=[]) %}"
        "{% for i in range(99999) %}{% set ns.l = ns.l + [s[1:]] %}{% endfor %}"
    ),
    "a list written at every turn": "{% set l = [1] * 99999 %}{% for i in range(99999) %}{{ l }}{% endfor %}",
    "as many characters to strip": "{% set s = 'a' * 2000000 %}{{ s.strip('b' * 2000000 ~ 'a') }}",
    "JSON with long separators": "{{ (range(90000)|list)|tojson(separators=('a' * 50000, ':')) }}",
    "JSON indented at great depth": (
        "{% set ns = namespace(x=range(25000)|list) %}{% for i in range(80) %}{% set ns.x = [ns.x] %}{% endfor %}"
        "{{ ns.x|tojson(indent=64) }}"
    ),
    "an escaped text that is replaced by more": "{{ ('a'|e * 1000000).replace('a', 'b' * 100000) }}",
    "an escaped text that joins": "{{ ('a'|e * 100000).join(['b'] * 100000) }}",
    "each character of a long text": "{{ ('\U0001f600' * 2000000)|list|length }}",
    "each character, joined": "{{ ('\U0001f600' * 2000000)|join('')|length }}",
    "each character, sorted": "{{ ('\U0001f600' * 2000000)|sort|length }}",
    "a long text cut into words": "{{ ('\U0001f600 ' * 1300000).split()|length }}",
    "a long text cut into lines": "{{ ('\U0001f600\n' * 1300000).splitlines()|length }}",
    "a long text cut at a letter": "{{ ('\U0001f600b' * 1300000).rsplit('b')|length }}",
    "a number in another base": "{{ ('f' * 2000000)|int(0, 16) }}",
    "a long list sorted": "{% set s = 'a' * 4000000 %}{{ ([s] * 99999)|sort }}",
}
ENDLESS = {
    "loops in loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}"
    ),
    "a loop with a condition": "{% for a in range(99999) if range(99999)|sum == a %}{% endfor %}",
    "a loop that calls itself": "{% for a in [1, 2] recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "a macro that calls itself twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "callers of callers": (
        "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}" + "{% call m() %}" * 40 + "x" + "{% endcall %}" * 40
    ),
    "a search in a long text": (
        "{% set s = 'a' * 4000000 %}{% for i in range(99999) %}{% if ('b' ~ i) in s %}x{% endif %}{% endfor %}"
    ),
    "long texts compared": (
        "{% set s = 'a' * 4000000 %}{% set t = 'a' * 4000000 %}"
        "{% for i in range(99999) %}{% if s == t %}{% endif %}{% endfor %}"
    ),
    "numbers with one hash": (
        "{% set ns = namespace(l=[]) %}"
        "{% for i in range(99999) %}{% set ns.l = ns.l + [i * 2305843009213693951] %}{% endfor %}{{ ns.l|unique|list }}"
    ),
    "a list searched in itself": "{% set a = range(99999)|list %}{{ a|select('in', a)|list|length }}",
    "a list whose items are refused": "{% set a = range(99999)|list %}{{ a|reject('in', a)|first }}",
    "a list compared by a test": (
        "{% set a = range(99999)|list %}{% set b = range(99999)|list %}" + "{{ a is eq(b) }}" * 4000
    ),
    "a list compared often": (
        "{% set a = range(99999)|list %}{% set b = range(99999)|list %}"
        + "{{ a == b }}{{ a < b }}{{ a in [b] }}" * 1000
    ),
    "a list searched often": "{% set a = range(99999)|list %}" + "{{ 2 in a }}{{ a.count(2) }}{{ a is in(a) }}" * 1000,
    "the largest of a long list, often": "{% set a = range(99999)|list %}" + "{{ a|max }}{{ a|min }}" * 2000,
    "chains of filters without a result": (
        "{% set a = range(1, 99999)|list %}" + ("{{ a" + "|select" * 40 + "|reject|first }}") * 50
    ),
    "numbers with one hash, made at once": (
        "{{ range(0, 99999 * 2305843009213693951, 2305843009213693951)|unique|list|length }}"
    ),
    "numbers with one hash as keys": (
        "{{ dict.fromkeys(range(0, 99999 * 2305843009213693951, 2305843009213693951))|length }}"
    ),
    "pairs with one hash": (
        "{% set a = range(0, 99999 * 2305843009213693951, 2305843009213693951)|batch(2) %}{{ dict(a)|length }}"
    ),
    "names with one hash": (
        "{% set a = range(0, 99999 * 2305843009213693951, 2305843009213693951)|batch(2) %}{{ namespace(a) }}"
    ),
    "a search from the end": "{{ ('a' * 2000000).rfind('a' * 500000 ~ 'b' ~ 'a' * 500000) }}",
    "a cut from the end": "{{ ('a' * 2000000).rsplit('a' * 500000 ~ 'b' ~ 'a' * 500000)|length }}",
    "a path without end": "{{ [1]|map(attribute='a.' * 1000000, default=0)|list }}",
    "a long key, often": "{% set t = (1,) * 60000 %}{% set d = {} %}" + "{{ d[t] }}{{ d.get(t) }}" * 2000,
    "filters in a loop": "{% for a in range(99999) %}{{ range(99999)|list|length }}{% endfor %}",
}
REFUSED = {
    "padding": "{{ 'a'.center(10**9) }}",
    "bytes of a number": "{{ (1).to_bytes(10**9) }}",
    "a text as bytes": "{{ 'a'.encode('utf-16') }}",
    "a private attribute": "{{ ''.__class__.__mro__ }}",
    "the inside of a function": "{{ raise_exception.__globals__['os'] }}",
    "a filter that lays out": "{{ 'a'|center(10**9) }}",
    "chance": "{{ [1, 2]|random }}",
    "invented text": "{{ lipsum(100000) }}",
    "a file": "{% include '/etc/passwd' %}",
    "a macro without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a number of two million bits": "{% set n = 0x" + "f" * 400_000 + " %}" + "{{ n % (n - 1) }}" * 100,
    "many colons in a brace": "{{ ('{' ~ ':' * 2000000).format(1) }}",
    "a format as a test": "{{ '%1000000000d' is divisibleby(1) }}",
    "a format as a test of oddness": "{{ '%999999999d' is odd }}",
    "a text that is rounded": "{{ ('a' * 2000000)|round(4, 'ceil') }}",
    "a list that is rounded": "{{ (range(99999)|list)|round(3, 'floor') }}",
    "a division by zero": "{{ 1 / 0 }}",
    "parentheses without end": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "loops too deep for Python": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "a template of half a megabyte": "{{ messages }}" * 50_000,
    "more parts than a template has": "{{ a.b.c.d.e }}" * 5_000,
}


# Like one of the others, and over a second each.
SLOW = frozenset((
    "mappings in mappings", "a tuple as a key", "joined as a method", "callers of callers",
    "a list whose items are refused", "a list compared by a test", "a list compared often", "a list searched often",
    "the largest of a long list, often", "a long key, often",
))  # fmt: skip


def cases(templates: dict[str, str]) -> list[object]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW), id=name) for name in templates]


def rendered(template: str, **variables: object) -> str:
    guard_chat_templates()
    return tiny_tokenizer(template).apply_chat_template(CONVERSATION, tokenize=False, **variables)


@pytest.mark.parametrize("name", cases(GROWING))
def test_a_template_that_grows_ends_before_it_has_grown(name):
    guard_chat_templates()
    rendered("{{ messages|length }}")  # what is made once is no part of the measurement
    tracemalloc.start()
    try:
        with pytest.raises(LimitReached):
            rendered(GROWING[name])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100 * 2**20


@pytest.mark.parametrize("name", cases(ENDLESS))
def test_a_template_without_end_ends_within_seconds(name):
    start = time.thread_time()
    with pytest.raises(LimitReached):
        rendered(ENDLESS[name])
    assert time.thread_time() - start < 5


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_chat_template_needs_is_refused(name):
    with pytest.raises((TemplateError, SecurityError, TypeError, ValueError)):
        rendered(REFUSED[name])


def test_a_conversation_begins_with_the_whole_budget():
    turns, nodes_a_turn = 99_999, 4
    text = "{% for i in range(" + str(turns) + ") %}{{ i }}{% endfor %}"
    for _ in range(1 + MAX_WORK // (nodes_a_turn * NODE_WORK * turns)):
        assert len(rendered(text)) > turns


@pytest.mark.parametrize("chat", CHAT_FORMATS, ids=lambda chat: chat.name)
def test_ordinary_templates_write_the_same(chat):
    """As transformers' own environment, which is compiled here beside the guarded one."""
    guard_chat_templates()
    guarded = chat_template_utils._compile_jinja_template(chat.template)
    plain = chat_template_utils._cached_compile_jinja_template(chat.template)
    tokenizer = chat.tokenizer()
    for options in ({"add_generation_prompt": True}, {"enable_thinking": False}, {"tools": [{"name": "f", "a": [1]}]}):
        variables = {"messages": CONVERSATION, **tokenizer.special_tokens_map, **options}
        assert guarded.render(**variables) == plain.render(**variables)


SYNTAX = (
    "{{ 1 + 2 }} {{ [1] + [2, 3] }} {{ 'a' + 'b' + 'c' + messages[0].role }} {{ 'a' ~ 1 ~ none ~ [2] }}",
    "{{ 7 % 3 }} {{ '%s-%05.1f' % ('a', 2.5) }} {{ '{0}:{b:>4}'.format('a', b=1) }} {{ 2 ** 10 }} {{ 'ab' * 3 }}",
    "{{ messages[::-1] }} {{ messages[1:] }} {{ 'abcdef'[-3:] }} {{ (1, 2) }} {{ {'a': messages} }}",
    "{% for k, v in {'a': 1, 'b': 2}|items %}{{ loop.index }}{{ k }}{{ v }}{{ loop.last }}{% else %}none{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ m.content }}{% endfor %}",
    "{% for x in [[1, [2]]] recursive %}{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}{% endif %}{% endfor %}",
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}{{ m(1) }}{% call m(3) %}in{% endcall %}",
    "{{ messages|map(attribute='role')|join(', ') }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ ' a b '.strip().split(' ')[-1].replace('b', 'c').upper() }} {{ ','.join(['x']) }} {{ 'a,b'|replace(',', '') }}",
    "{{ messages|tojson(indent=2) }} {{ {'b': 1, 'a': 'é'}|dictsort }} {{ 'a\nb'|indent(2) }} {{ ' a'|trim }}",
    "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}",
    "{% set x %}block {{ messages|length }}{% endset %}{{ x|upper }}{{ missing|default('d') }}{{ missing }}",
    "{{ messages[0].get('role') }}{{ messages[0].keys()|list }}{{ messages[0]['nothing'] }}{{ messages[0].nothing }}",
    "{{ '<b>'|e }}{{ '<b>'|e + '<c>' }}{{ ['a', 'b']|last }}{{ [3, 1]|sort }}{{ [1, 1]|unique|list }}{{ [1, 2]|sum }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
)


@pytest.mark.parametrize("template", SYNTAX)
def test_what_templates_are_made_of_means_the_same(template):
    guard_chat_templates()
    variables = {"messages": CONVERSATION}
    plain = chat_template_utils._cached_compile_jinja_template(template).render(**variables)
    assert chat_template_utils._compile_jinja_template(template).render(**variables) == plain


def test_a_row_under_such_a_template_stops_the_run_in_one_line():
    """Not as a row's refusal: `bad_rows: drop` would try it on every row of the dataset."""
    pair = to_pair({"prompt": "Hi", "chosen": CONVERSATION, "rejected": REJECTED})
    with pytest.raises(ModelError, match=r"chat template of .* beyond what a conversation needs; .*hostile"):
        Renderer(tiny_tokenizer(ENDLESS["loops in loops"])).render(pair)


def test_what_a_template_may_not_call_is_a_refusal_in_its_words():
    pair = to_pair({"chosen": CONVERSATION, "rejected": REJECTED})
    with pytest.raises(RowError, match="refused by the chat template"):
        Renderer(tiny_tokenizer(REFUSED["padding"])).render(pair)


def test_a_chat_is_guarded_as_well():
    backend = TransformersBackend("tiny", tiny_model(), tiny_tokenizer(CHATML))
    backend.tokenizer.chat_template = GROWING["a text times a number"]
    with pytest.raises(ModelError, match="makes a value of more than"):
        backend.render(CONVERSATION[:1])
