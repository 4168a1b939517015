"""Several answers of a GGUF file at once: each is that which llama.cpp gives alone."""

import pytest

from oddsmith.export.gguf.parallel import Asked, ParallelGguf
from tests.servers import TINY
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf

pytest.importorskip("cyllama")
TEXTS = ("Hi", "How are you today?", "Why")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(folder / "tiny.gguf", tiny_model(**TINY), tiny_tokenizer(), merges=["Ā ā"])


def answers(file, sequences, asked, **options):
    with ParallelGguf(file, sequences=sequences, tokens=64, threads=1) as model:
        prompts = [Asked(number, model.tokenize(text), seed) for number, (text, seed) in enumerate(asked)]
        found = sorted(model.answers(prompts, max_new_tokens=12, **options))
        if not options:
            for written, prompt in zip(found, prompts, strict=True):
                model._context.kv_cache_clear()
                model._seen.clear()
                assert written.ids == list(model.generate(prompt.ids, max_new_tokens=12))
        return [written.ids for written in found]


def test_greedy_answers_are_those_of_one_sequence(file):
    found = answers(file, 2, [(text, 0) for text in TEXTS for _ in range(2)])
    assert found[::2] == found[1::2]


@pytest.mark.parametrize("sequences", [1, 3, 8])
def test_an_answer_depends_on_its_prompt_and_seed_alone(file, sequences):
    asked = [(text, seed) for text in TEXTS for seed in (5, 6, 7)]
    options = {"temperature": 1.0, "top_p": 0.9}
    found = answers(file, sequences, asked, **options)
    assert found == [answers(file, 1, [one], **options)[0] for one in asked]
    assert len({tuple(ids) for ids in found}) == len(asked)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_tokens_that_need_not_be_sorted_change_nothing(file, top_p, monkeypatch):
    asked = [(text, seed) for text in TEXTS for seed in range(4)]
    found = answers(file, 4, asked, temperature=1.5, top_p=top_p)

    def sorting_all(self, temperature, top_p, seed):
        sampler = self._library.LlamaSampler(self._library.LlamaSamplerChainParams())
        sampler.add_top_p(top_p, 1)
        sampler.add_temp(temperature)
        sampler.add_dist(seed)
        return sampler

    monkeypatch.setattr(ParallelGguf, "_sampler", sorting_all)
    assert found == answers(file, 4, asked, temperature=1.5, top_p=top_p)


def test_sequences_follow_each_other_in_every_batch(file, monkeypatch):
    computed = []
    run = ParallelGguf._run

    def noted(self, batch, tokens):
        computed.append([sequence for _, _, sequence, has_logits in tokens if has_logits])
        return run(self, batch, tokens)

    monkeypatch.setattr(ParallelGguf, "_run", noted)
    answers(file, 3, [(text, seed) for text in TEXTS for seed in range(4)], temperature=2.0)
    assert all(batch == list(range(len(batch))) for batch in computed)
    assert {len(batch) for batch in computed} >= {1, 2, 3}
