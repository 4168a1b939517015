"""How many answers a second `oddsmith data make` gets, beside what transformers and llama.cpp do alone.

    python benchmarks/data_make.py [--prompts 32] [--samples 4] [--tokens 128] [--at-once 32] [--only transformers ...]

The model is SmolLM2-135M-Instruct, as a folder and as a GGUF file (q8_0), the prompts are those of the built-in pairs.
Each is asked for the same answers, at temperature 0.8 and top-p 0.95, without the time that loading takes:

    transformers         ``model.generate`` with as many samples of a prompt, in batches of prompts of similar length
    llama.cpp            its own server in this process, with as many slots and requests, sent by threads
    a server             the same server behind `oddsmith serve`, asked by bare requests of httpx2

Answers have different lengths, so tokens a second are compared. benchmarks/from_prompts.py runs the command itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2
import torch

from oddsmith.data.builtin import demo_pairs
from oddsmith.export.gguf.export import export_gguf
from oddsmith.export.gguf.llama_cpp import available_processors
from oddsmith.inference.chat.backends import open_backend
from oddsmith.inference.chat.with_transformers import TransformersBackend
from oddsmith.inference.serve.server import serving
from oddsmith.making.answers.drawing import Drawing
from oddsmith.making.answers.local import open_model
from oddsmith.making.answers.served import ServedAnswers
from oddsmith.making.openai_client import ChatServer
from oddsmith.making.questions import key_of
from oddsmith.making.records import Answer, Question

MODEL = "builtin:smollm2-135m-instruct"
BACKENDS = ("transformers", "llama.cpp", "server")


class Rate:
    """Answers and tokens of one measurement, and the seconds that they took."""

    def __init__(self, answers: int, tokens: int, seconds: float):
        self.answers, self.tokens, self.seconds = answers, tokens, seconds

    def __str__(self) -> str:
        per_second = f"{self.answers / self.seconds:6.2f} answers/s  {self.tokens / self.seconds:7.1f} tokens/s"
        mean = self.tokens / self.answers
        return f"{per_second}   ({self.answers} answers of {mean:.0f} tokens in {self.seconds:.1f} s)"


def questions(count: int) -> list[Question]:
    """Return so many different prompts of the built-in pairs."""
    found: dict[str, Question] = {}
    for row in (*demo_pairs("train"), *demo_pairs("heldout")):
        found.setdefault(key_of(row["prompt"]), Question(key_of(row["prompt"]), row["prompt"]))
    return list(found.values())[:count]


def ours(answers: Callable[[], Sequence[Answer]]) -> Rate:
    """Time what `data make` does to get answers."""
    start = time.perf_counter()
    found = answers()
    return Rate(len(found), sum(answer.tokens or 0 for answer in found), time.perf_counter() - start)


def transformers_alone(asked: Sequence[Question], drawing: Drawing, at_once: int) -> Rate:
    """Time ``generate`` alone."""
    backend = open_backend(MODEL)
    if not isinstance(backend, TransformersBackend):
        raise TypeError(MODEL)
    model, tokenizer = backend.model, backend.tokenizer
    prompts = sorted((backend.tokenize(backend.render(one.messages)) for one in asked), key=len)
    per_batch = max(1, at_once // drawing.samples)
    torch.manual_seed(0)
    answers = tokens = 0
    start = time.perf_counter()
    for first in range(0, len(prompts), per_batch):
        batch = prompts[first : first + per_batch]
        padded = tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt")
        with torch.no_grad():
            output = model.generate(
                **padded,
                do_sample=True,
                temperature=drawing.temperature,
                top_p=drawing.top_p,
                top_k=0,
                max_new_tokens=drawing.max_new_tokens,
                num_return_sequences=drawing.samples,
                pad_token_id=tokenizer.pad_token_id,
            )
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        for row in output[:, padded["input_ids"].shape[1] :].tolist():
            answers += 1
            tokens += next((place for place, token in enumerate(row) if token in ends), len(row))
            tokenizer.decode(row)
    return Rate(answers, tokens, time.perf_counter() - start)


def bare_requests(
    client: httpx2.AsyncClient, name: str, asked: Sequence[Question], drawing: Drawing, at_once: int
) -> Rate:
    """Time the same requests without Oddsmith's client."""
    room = asyncio.Semaphore(at_once)
    tokens = answers = 0

    async def ask(question: Question, sample: int) -> None:
        nonlocal tokens, answers
        body = {
            "model": name,
            "messages": question.messages,
            "temperature": drawing.temperature,
            "top_p": drawing.top_p,
            "top_k": 0,  # as for the others: llama.cpp's server would draw from 40 tokens, and from those above min_p
            "min_p": 0.0,
            "max_tokens": drawing.max_new_tokens,
            "seed": drawing.seed_of(question, sample),
        }
        async with room:
            response = await client.post("/chat/completions", json=body)
        tokens += response.json()["usage"]["completion_tokens"]
        answers += 1

    async def ask_all() -> None:
        await asyncio.gather(*(ask(question, sample) for question in asked for sample in range(drawing.samples)))
        await client.aclose()

    start = time.perf_counter()
    asyncio.run(ask_all())
    return Rate(answers, tokens, time.perf_counter() - start)


def llama_cpp_alone(file: Path, asked: Sequence[Question], drawing: Drawing, at_once: int) -> Rate:
    """Time llama.cpp's server in this process, over its socket."""
    import xllamacpp

    with tempfile.TemporaryDirectory() as folder:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.hostnames = [f"{folder}/llama.sock"]
        parameters.n_parallel = at_once
        parameters.n_ctx = at_once * 1024
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = available_processors()
        server = xllamacpp.Server(parameters)
        transport = httpx2.AsyncHTTPTransport(uds=f"{folder}/llama.sock", limits=httpx2.Limits(max_connections=at_once))
        client = httpx2.AsyncClient(transport=transport, base_url="http://localhost/v1", timeout=None)
        found = bare_requests(client, file.stem, asked, drawing, at_once)
        del server
    return found


def compare(name: str, alone: Rate, made: Rate) -> None:
    """Print both rates, and what share of the tokens a second `data make` gets."""
    print(f"{name}\n  alone      {alone}\n  data make  {made}")
    print(f"  share      {made.tokens / made.seconds / (alone.tokens / alone.seconds):.0%}", flush=True)


def by_transformers(asked: Sequence[Question], drawing: Drawing, at_once: int) -> None:
    """Compare with ``generate``."""
    alone = transformers_alone(asked, drawing, at_once)
    model = open_model(MODEL, drawing, at_once)
    compare("transformers", alone, ours(lambda: list(model.answers(asked, set()))))


def by_llama_cpp(file: Path, asked: Sequence[Question], drawing: Drawing, at_once: int) -> None:
    """Compare with llama.cpp's server."""
    alone = llama_cpp_alone(file, asked, drawing, at_once)
    model = open_model(str(file), drawing, at_once)
    compare("llama.cpp", alone, ours(lambda: list(model.answers(asked, set()))))


def by_server(file: Path, asked: Sequence[Question], drawing: Drawing) -> None:
    """Compare with bare requests."""
    with serving(str(file), port=8391) as server:
        limits = httpx2.Limits(max_connections=8)
        client = httpx2.AsyncClient(base_url=server.url, timeout=None, limits=limits)
        alone = bare_requests(client, server.model, asked, drawing, 8)
        served = ServedAnswers(server.model, ChatServer(server.url, concurrency=8), drawing)
        compare("a server", alone, ours(lambda: list(served.answers(asked, set()))))


def main() -> None:
    """Measure what the flags ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=BACKENDS, default=BACKENDS)
    given = parser.parse_args()
    drawing = Drawing(samples=given.samples, max_new_tokens=given.tokens)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    asked = questions(given.prompts)
    if "transformers" in given.only:
        by_transformers(asked, drawing, given.at_once)
    with tempfile.TemporaryDirectory() as folder:
        if set(given.only) != {"transformers"}:
            file = Path(export_gguf(MODEL, types=["q8_0"], output=Path(folder) / "gguf").files[0].path)
        if "llama.cpp" in given.only:
            by_llama_cpp(file, asked, drawing, given.at_once)
        if "server" in given.only:
            by_server(file, asked, drawing)


if __name__ == "__main__":
    main()
