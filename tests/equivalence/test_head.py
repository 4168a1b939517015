"""The head without logits against all logits and plain autograd: values, every gradient, operations and memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils import TrainableTokensWrapper
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from oddsmith.model.logprobs.head import kept_bytes, token_logps, token_logps_reference
from oddsmith.model.logprobs.memory_saving.token_rows import trained_tokens
from oddsmith.model.logprobs.output_transform import OutputTransform
from tests.tiny import tiny_model

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
aten = torch.ops.aten


class Case:
    """Hidden states, entries in the order of their positions, and the weights that a loss gives their results."""

    def __init__(self, positions, entries, hidden, vocabulary, *, dtype=torch.float32, seed=0, device="cpu"):
        generator = torch.Generator().manual_seed(seed)
        # With replacement: some positions predict several tokens and others none.
        self.position_E = torch.randint(0, positions, (entries,), generator=generator).sort().values.to(device)
        self.target_E = torch.randint(0, vocabulary, (entries,), generator=generator).to(device)
        self.weight_E = torch.randn(entries, generator=generator, dtype=dtype).to(device)
        self.hidden_TD = torch.randn(positions, hidden, generator=generator, dtype=dtype).to(device)

    def run(self, logps, head, **options):
        """Log-probabilities, and gradients of hidden states and of the head's trainable parameters by name."""
        hidden_TD = self.hidden_TD.clone().requires_grad_()
        parameters = {name: p for name, p in head.named_parameters() if p.requires_grad}
        logp_E = logps(head, hidden_TD, self.position_E, self.target_E, **options)
        inputs = [hidden_TD, *parameters.values()]
        gradients = torch.autograd.grad((logp_E * self.weight_E).sum(), inputs)
        return dict(zip(("logp", "hidden", *parameters), (logp_E.detach(), *gradients), strict=True))


def linear(hidden, vocabulary, *, bias=True, trainable=(), dtype=torch.float32, seed=0, device="cpu"):
    torch.manual_seed(seed)
    head = nn.Linear(hidden, vocabulary, bias=bias, dtype=dtype)
    with torch.no_grad():
        head.weight *= 5
    for name, parameter in head.named_parameters():
        parameter.requires_grad = name in trainable
    return head.to(device)


def assert_equal(ours, plain, tolerance):
    """Compare tensors by name, relative to the largest element of each (or to 1, where sums cancel)."""
    assert ours.keys() == plain.keys()
    for name, expected in plain.items():
        assert (ours[name].dtype, ours[name].shape) == (expected.dtype, expected.shape), name
        error = (ours[name] - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert error <= tolerance, f"{name}: {error}"


class Watched(TorchDispatchMode):
    """Count the operations of matrix products, and note the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.largest = self.operations = 0
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
            if func.overloadpacket in (aten.mm, aten.addmm, aten.addmm_):
                left, right = [a for a in args if isinstance(a, torch.Tensor) and a.ndim == 2][-2:]
                self.dtypes.add(left.dtype)
                self.operations += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=60)
@given(
    positions=st.integers(1, 30),
    entries=st.integers(1, 40),
    hidden=st.integers(1, 12),
    vocabulary=st.integers(1, 60),
    bias=st.booleans(),
    trainable=st.sampled_from([(), ("weight",), ("bias",), ("weight", "bias")]),
    transform=st.builds(OutputTransform, st.sampled_from([1.0, 0.3, 4.0]), st.sampled_from([None, 2.0, 30.0])),
    rows_in_budget=st.integers(0, 50),
    seed=st.integers(0, 2**31),
)
def test_a_linear_head_equals_all_logits(
    device, dtype, positions, entries, hidden, vocabulary, bias, trainable, transform, rows_in_budget, seed
):
    case = Case(positions, entries, hidden, vocabulary, dtype=dtype, seed=seed, device=device)
    head = linear(hidden, vocabulary, bias=bias, trainable=trainable, dtype=dtype, seed=seed, device=device)
    ours = case.run(token_logps, head, transform=transform, budget_bytes=rows_in_budget * vocabulary * dtype.itemsize)
    plain = case.run(token_logps_reference, head, transform=transform)
    assert_equal(ours, plain, TOLERANCE[dtype])


def test_chunks_longer_than_a_slice_equal_all_logits():
    """600 entries at 5,000 tokens: three chunks of a frozen head, each of many slices."""
    case = Case(500, 600, 4, 5000, dtype=torch.float64)
    for trainable in [(), ("weight",)]:
        head = linear(4, 5000, trainable=trainable, dtype=torch.float64)
        options = {"transform": OutputTransform(0.5, 20.0)}
        assert_equal(case.run(token_logps, head, **options), case.run(token_logps_reference, head, **options), 1e-9)


class NormedHead(nn.Module):
    """A head without ``out_features`` that is not a linear layer."""

    def __init__(self, hidden, vocabulary):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, vocabulary)

    def forward(self, hidden):
        return self.out(self.norm(hidden))


class Holder(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.lm_head = head
        self.other = nn.Linear(1, 1)


def adapted(**settings):
    torch.manual_seed(0)
    model = get_peft_model(Holder(nn.Linear(8, 50)), LoraConfig(r=2, target_modules=["lm_head"], **settings))
    head = model.base_model.model.lm_head
    with torch.no_grad():
        head.lora_B["default"].weight.normal_()
    return head


OTHER_HEADS = {
    "LoRA": lambda: adapted(),
    "LoRA with a bias": lambda: adapted(lora_bias=True),
    "DoRA": lambda: adapted(use_dora=True),
    "a norm in it": lambda: NormedHead(8, 50),
    "needs its own output": lambda: nn.Sequential(nn.Linear(8, 50), nn.Tanh()),
}


@pytest.mark.parametrize("name", OTHER_HEADS)
@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
def test_any_other_head_equals_all_logits(name, rows):
    head = OTHER_HEADS[name]()
    case = Case(30, 45, 8, 50)
    options = {"transform": OutputTransform(2.0, 3.0)}
    ours = case.run(token_logps, head, budget_bytes=4 * rows * 50 * 4, **options)
    assert_equal(ours, case.run(token_logps_reference, head, **options), 1e-5)
    assert len(ours) >= 4  # hidden states and at least two parameters of the head


def test_a_head_with_dropout_is_computed_again_with_the_same_one():
    head = adapted(lora_dropout=0.5).double()
    case = Case(30, 45, 8, 50, dtype=torch.float64)
    options = {"budget_bytes": 4 * 7 * 50 * 8}  # seven chunks, six of them computed again
    step_TD = 1e-6 * torch.randn_like(case.hidden_TD)

    def loss(hidden_TD):
        torch.manual_seed(1)
        logp_E = token_logps(head, hidden_TD, case.position_E, case.target_E, **options)
        return (logp_E * case.weight_E).sum()

    with torch.no_grad():
        numeric = (loss(case.hidden_TD + step_TD) - loss(case.hidden_TD - step_TD)) / 2
    torch.manual_seed(1)
    gradient_TD = case.run(token_logps, head, **options)["hidden"]
    assert (gradient_TD * step_TD).sum().item() == pytest.approx(numeric.item(), rel=1e-5)


def test_quantised_weights_equal_all_logits():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    head = bitsandbytes.nn.Linear4bit(64, 50, compute_dtype=torch.float32).to("cpu").requires_grad_(False)
    case = Case(30, 45, 64, 50)
    assert_equal(case.run(token_logps, head, budget_bytes=5000), case.run(token_logps_reference, head), 1e-5)


def through_model(model, logps, ids_1T, case):
    """Return the gradients of all trainable parameters when the last hidden states go through ``logps``."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_TD = inner.model(input_ids=ids_1T).last_hidden_state[0]
    logp_E = logps(inner.get_output_embeddings(), hidden_TD, case.position_E, case.target_E)
    model.zero_grad(set_to_none=True)
    (logp_E * case.weight_E).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return {"logp": logp_E.detach(), **gradients}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("setting", ["full", "full but for the head", "LoRA", "modules_to_save", "disabled", "rows"])
def test_gradients_through_a_model(setting, tied):
    """A tied weight gets the head's contribution on top of the embedding's."""
    model = tiny_model(tie_word_embeddings=tied)
    if setting == "full but for the head":
        model.lm_head.requires_grad_(False)
    elif setting in ("modules_to_save", "disabled"):
        tying = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
        model = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj"], **(tying if tied else {"modules_to_save": ["lm_head"]}))
        )
    elif setting in ("LoRA", "rows"):
        tokens = {layer: [3, 100, 257] for layer in ("embed_tokens", *([] if tied else ["lm_head"]))}
        rows = {"trainable_token_indices": tokens} if setting == "rows" else {}
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **rows))
    if setting == "disabled":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name:
                    parameter.normal_()
        model.base_model.disable_adapter_layers()
        model.base_model.model.model.norm.weight.requires_grad_(True)
    case = Case(20, 30, 1, 264)
    ids_1T = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(0))
    ours, plain = (through_model(model, logps, ids_1T, case) for logps in (token_logps, token_logps_reference))
    assert_equal(ours, plain, 1e-5)
    assert any("lm_head" in name or "embed_tokens" in name for name in ours) == (
        setting in ("full", "modules_to_save", "rows") or (setting == "full but for the head" and not tied)
    )


@pytest.mark.parametrize("budget_rows", [10**6, 7])
@pytest.mark.parametrize("transform", [OutputTransform(), OutputTransform(scale=0.5, soft_cap=3.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_that_peft_trains(dtype, transform, budget_rows):
    """They are computed without PEFT's copy of the weight, whatever the targets are."""
    case = Case(40, 60, 16, 90)
    head = TrainableTokensWrapper(linear(16, 90, bias=False).to(dtype), "default", token_indices=[2, 5, 89])
    rows = head.token_adapter.trainable_tokens_delta["default"]
    with torch.no_grad():
        rows.add_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    case.target_E[:3] = torch.tensor([2, 5, 89])
    results = []
    for logps in (token_logps, token_logps_reference):
        hidden = case.hidden_TD.to(dtype).clone().requires_grad_()
        budget = budget_rows * 90 * dtype.itemsize
        logp_E = logps(head, hidden, case.position_E, case.target_E, transform=transform, budget_bytes=budget)
        gradients = torch.autograd.grad((logp_E * case.weight_E).sum(), [hidden, rows])
        results.append((logp_E.detach(), *gradients))
        if logps is token_logps_reference:
            continue
        with torch.no_grad():
            again = token_logps(head, hidden, case.position_E, case.target_E, transform=transform, budget_bytes=budget)
        assert torch.equal(again, logp_E)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.02}[dtype]
    for ours, plain in zip(*results, strict=True):
        assert ours.dtype == plain.dtype or dtype == torch.bfloat16
        assert error(ours, plain.double()) < tolerance


def test_ids_of_trained_tokens_go_to_the_device_once():
    layer = TrainableTokensWrapper(linear(16, 90, bias=False), "default", token_indices=[2, 5]).token_adapter
    first = trained_tokens(layer, "default", torch.device("cpu"))
    assert trained_tokens(layer, "default", torch.device("cpu")) is first
    layer.token_indices["default"] = [2, 7]
    assert trained_tokens(layer, "default", torch.device("cpu")).tolist() == [2, 7]


def error(result, truth):
    return ((result.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("budget_rows", [10**6, 50])
@pytest.mark.parametrize("confidence", [1, 8, 40])
@pytest.mark.parametrize("kind", ["frozen", "trained", "LoRA"])
def test_bf16_autocast_is_no_further_from_the_truth_than_all_logits_are(kind, confidence, budget_rows):
    """The truth is float64. A confident head predicts its targets, and their gradient is 1 - p."""
    case = Case(200, 260, 64, 700)
    head = linear(64, 700, trainable=("weight", "bias") if kind == "trained" else ())
    with torch.no_grad():
        head.weight *= confidence
        if confidence > 1:
            case.target_E = head(case.hidden_TD)[case.position_E].argmax(-1)
    if kind == "LoRA":
        head = get_peft_model(Holder(head), LoraConfig(r=2, target_modules=["lm_head"])).base_model.model.lm_head
        nn.init.normal_(head.lora_B["default"].weight)
    options = {"transform": OutputTransform(1.0, 50.0), "budget_bytes": budget_rows * 700 * 2}
    with torch.autocast("cpu", torch.bfloat16):
        ours = case.run(token_logps, head, **options)
        plain = case.run(token_logps_reference, head, **options)
    exact = Case(200, 260, 64, 700, dtype=torch.float64)
    exact.hidden_TD, exact.weight_E, exact.target_E = case.hidden_TD.double(), case.weight_E.double(), case.target_E
    truth = exact.run(token_logps_reference, head.double(), **options)
    assert ours["logp"].dtype == torch.float32
    for name, expected in truth.items():
        assert error(ours[name], expected) <= 1.3 * error(plain[name], expected), name


def test_a_confident_token_keeps_its_log_probability():
    """In bf16 this log-probability of -4.5e-5 would be 0, and its gradient a rounding error."""
    head = nn.Linear(1, 3, bias=False)
    head.weight.data = torch.tensor([[10.0], [0.0], [-1.0]])
    hidden_TD = torch.ones(1, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logp_E = token_logps(head, hidden_TD, torch.tensor([0]), torch.tensor([0]))
    logp_E.sum().backward()
    total = 1 + math.exp(-10) + math.exp(-11)
    assert logp_E.item() == pytest.approx(-math.log(total), abs=1e-7)
    assert hidden_TD.grad.item() == pytest.approx((10 * math.exp(-10) + 11 * math.exp(-11)) / total, rel=0.02)


def test_how_many_products_each_kind_of_head_takes():
    case, product = Case(300, 300, 16, 100), 2 * 300 * 16 * 100
    everything, third = 300 * 100 * 4, 100 * 100 * 4

    def products(head, budget_bytes):
        with Watched() as watched:
            case.run(token_logps, head, budget_bytes=budget_bytes)
        return watched.operations / product

    trained = linear(16, 100, bias=False, trainable=("weight",))
    assert products(linear(16, 100), everything) == 2
    assert products(linear(16, 100), third) == 2
    assert products(trained, everything) == 3
    assert products(trained, third) == pytest.approx(3 + 2 / 3)
    in_full = LoraConfig(r=2, target_modules=["other"], modules_to_save=["lm_head"])
    assert products(get_peft_model(Holder(trained), in_full).base_model.model.lm_head, everything) == 3
    with Watched() as watched, torch.no_grad():
        token_logps(trained, case.hidden_TD, case.position_E, case.target_E)
    assert watched.operations == product


def test_products_run_in_the_dtype_of_autocast():
    case = Case(30, 40, 8, 50)
    for head in (linear(8, 50), linear(8, 50, trainable=("weight", "bias")), adapted()):
        with torch.autocast("cpu", torch.bfloat16), Watched() as watched:
            case.run(token_logps, head)
        assert watched.dtypes == {torch.bfloat16}


def test_a_frozen_head_takes_no_more_memory_than_its_speed_needs():
    case = Case(600, 600, 8, 100)
    with Watched() as watched:
        case.run(token_logps, linear(8, 100))
    assert watched.largest == 256 * 100


@pytest.mark.parametrize("trainable", [(), ("weight",)])
def test_a_pair_of_8000_tokens_equals_all_logits(trainable):
    case = Case(8000, 8000, 16, 2000)
    head = linear(16, 2000, bias=False, trainable=trainable)
    ours = case.run(token_logps, head, budget_bytes=8 << 20)
    assert_equal(ours, case.run(token_logps_reference, head), 1e-5)


@pytest.mark.parametrize("trainable", [(), ("weight",)])
def test_a_pair_of_8000_tokens_never_has_its_logits(trainable):
    """No result of any operation, forward or backward, is larger than the budget; all logits would be 31 times that."""
    case, budget_bytes = Case(8000, 8000, 4, 16384), 16 << 20
    head = linear(4, 16384, bias=False, trainable=trainable)
    with Watched() as watched:
        case.run(token_logps, head, budget_bytes=budget_bytes)
    assert watched.largest <= budget_bytes / 4


@pytest.mark.parametrize(("rows_in_budget", "saved"), [(4 * 60, [60]), (4 * 256, [256]), (2000, [256, 44])])
def test_any_other_head_saves_what_the_budget_holds_beside_the_current_chunk(rows_in_budget, saved):
    case, head = Case(300, 300, 8, 50), adapted()
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logps(
            head, case.hidden_TD.requires_grad_(), case.position_E, case.target_E, budget_bytes=rows_in_budget * 200
        )
    assert sorted((size for size in sizes if size > 256 * 8), reverse=True) == [50 * rows for rows in saved]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("entries", [40, 300])
@pytest.mark.parametrize("rows_in_budget", [3, 100, 2000])
@pytest.mark.parametrize("kind", ["frozen", "trained", "LoRA", "rows"])
def test_what_a_head_keeps_is_known_before(kind, rows_in_budget, entries, autocast):
    """Of each kind at most what is said, and of a trained head exactly that."""
    head = {
        "frozen": lambda: linear(8, 50, bias=False),
        "trained": lambda: linear(8, 50, trainable=("weight",)),
        "LoRA": adapted,
        "rows": lambda: TrainableTokensWrapper(linear(8, 50, bias=False), "default", token_indices=[2]),
    }[kind]()
    case, options = Case(entries, entries, 8, 50), {"budget_bytes": rows_in_budget * 50 * (2 if autocast else 4)}
    kept = []

    def keep(tensor):
        if tensor.ndim == 2 and tensor.shape[1] == 50 and tensor.is_contiguous():  # not a transposed weight
            kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", enabled=autocast):
        token_logps(head, case.hidden_TD.requires_grad_(), case.position_E, case.target_E, **options)
        said = kept_bytes(head, entries, **options)
    assert sum(kept) == said if kind != "LoRA" else 0 < said >= sum(kept)


@pytest.mark.parametrize("rows", [10**6, 4])
def test_two_backward_passes_add_up(rows):
    case, head = Case(10, 12, 8, 50), linear(8, 50, trainable=("weight", "bias"))
    for _ in range(2):
        logp_E = token_logps(head, case.hidden_TD, case.position_E, case.target_E, budget_bytes=rows * 200)
        (logp_E * case.weight_E).sum().backward()
    plain = case.run(token_logps_reference, head)
    torch.testing.assert_close(head.weight.grad, 2 * plain["weight"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.bias.grad, 2 * plain["bias"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: linear(8, 50), lambda: adapted()])
def test_a_second_derivative_is_refused(make):
    case = Case(10, 12, 8, 50)
    hidden_TD = case.hidden_TD.requires_grad_()
    logp_E = token_logps(make(), hidden_TD, case.position_E, case.target_E)
    (gradient_TD,) = torch.autograd.grad(logp_E.square().sum(), hidden_TD, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient_TD.sum().backward()


@pytest.mark.parametrize("make", [lambda: linear(8, 50), lambda: adapted()])
def test_it_can_be_called_from_a_hook_on_the_head(make):
    case, head, calls = Case(10, 12, 8, 50), make(), []

    def hook(module, args):
        calls.append(token_logps(module, args[0], case.position_E, case.target_E))
        return (args[0][:0],)

    with head.register_forward_pre_hook(hook):
        head(case.hidden_TD)
    assert len(calls) == 1
    expected_E = token_logps_reference(head, case.hidden_TD, case.position_E, case.target_E)
    torch.testing.assert_close(calls[0], expected_E, rtol=1e-5, atol=1e-5)


def test_a_backward_pass_inside_of_autocast_rounds_nothing():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 50), torch.randn(20, 8, requires_grad=True)
    position, target = torch.arange(20), torch.arange(20)
    wanted = hidden, head.weight, head.bias

    def gradients(autocast):
        logps = token_logps(head, hidden, position, target, budget_bytes=7 * 50 * 4)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return torch.autograd.grad(logps.square().sum(), wanted)

    assert all(torch.equal(*pair) for pair in zip(gradients(True), gradients(False), strict=True))
