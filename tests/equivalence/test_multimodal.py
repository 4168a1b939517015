"""Models that read images or sound as well, trained on text: packed = padded = plain, and nothing else is touched."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from oddsmith.batching.collate import PairCollator, trl_features
from oddsmith.errors import ModelError
from oddsmith.model.adapters import add_adapter
from oddsmith.model.generation import replies
from oddsmith.model.loading.architecture import auto_class_for, auto_class_of
from oddsmith.model.logprobs.padded import pair_logps
from oddsmith.model.logprobs.self_check import check_forest
from oddsmith.model.text_part import outside_parameters, outside_text, pattern_of
from tests.equivalence.test_forest import assert_same, both_paths, rows_of
from tests.tiny import tiny_tokenizer
from tests.tiny_multimodal import KINDS, multimodal_config, multimodal_model

FAST = ["qwen3_vl", "qwen2_5_vl", "mistral3", "gemma3", "paligemma", "mllama", "idefics3", "cohere2_vision"]
# Other kinds are packed, and tried by `make test-slow`.
PADDED = {
    "git": "differ from single sequences by",
    "inkling2": "an unknown change of the logits",
    "kosmos-2.5": "differ from single sequences by",  # it computes positions from token ids
    "nemotron_h_omni": "its output layer could not be found",
    "t5gemma2": "it is an encoder-decoder",
}
REFUSED = {
    "blip": "its forward pass needs pixel_values",
    "blip-2": "its forward pass needs pixel_values",
    "diffusion_gemma": "it writes blocks of text by diffusion",
    "evolla": "it needs a protein with every text",
    "idefics": "it needs an image with every text",
    "instructblip": "its forward pass needs pixel_values and qformer_input_ids",
    "instructblipvideo": "its forward pass needs pixel_values and qformer_input_ids",
    "kosmos-2": "it needs an image with every text",
    "kyutai_speech_to_text": "it needs sound with every text",
    "pi0": "its forward pass needs",
    "pix2struct": "it reads images in place of a prompt",
    "pp_formulanet": "it reads images in place of a prompt",
    "qwen2_5_omni": "load that with Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "load that with Qwen3OmniMoeThinkerForConditionalGeneration",
    "udop": "it needs the place of every token on a page",
    "vision-encoder-decoder": "it reads images in place of a prompt",
    "voxtral_realtime": "it needs sound with every text",
}
# No miniature: they need timm, their settings have no defaults, or a part stays large.
NOT_TRIED = {
    "chameleon", "cohere_compass", "deepseek_ocr2", "dots3_note", "emu3", "ernie4_5_vl_moe", "fast_vlm", "florence2",
    "gemma3n", "glm5_next", "granite4_vision", "granite_speech", "granite_speech_plus", "hunyuan_vl",
    "inkling_mm_model", "janus", "kimi_k25", "minimax_m3_vl", "mistral4", "mistral_large4", "nemo_speechlm",
    "perception_lm", "qwen4_exp", "step3p7", "vibevoice_asr",
}  # fmt: skip
PAIRS = [
    ([3, 4, 5, 9], [6, 7, 8], [9, 3]),
    ([3, 4, 5, 9, 11], [6, 7, 8, 8, 8], [9, 3, 4]),
    ([5, 6], [7, 8, 9], [7, 8, 1]),
]


def settings_of(kind: str) -> PreTrainedConfig:
    """Return a configuration of which only the class matters; some have no defaults for all of their parts."""
    try:
        return AutoConfig.for_model(kind)
    except (TypeError, ValueError, KeyError, AttributeError):
        return multimodal_config(kind)


def plain_logps(model, ids: list[int]) -> torch.Tensor:
    """Compute log p of each token after the first, of one sequence, one token longer each time: nothing leaks back."""
    found = []
    for end in range(1, len(ids)):
        before = torch.tensor([ids[:end]])
        kinds = {"token_type_ids": torch.ones_like(before)} if model.config.model_type == "paligemma" else {}
        logits = model(input_ids=before, attention_mask=torch.ones_like(before), **kinds).logits[0, -1]
        found.append(logits.float().log_softmax(-1)[ids[end]])
    return torch.stack(found)


@pytest.mark.parametrize("kind", FAST)
def test_pairs_are_packed_and_equal_padded_and_plain_ones(kind):
    model = multimodal_model(kind).eval()
    verdict = check_forest(model, tiny_tokenizer(), pad_token_id=0, precision=nullcontext)
    assert verdict.forest, verdict.reason
    rows = rows_of(PAIRS)
    packed, padded = both_paths(model, rows)
    assert_same(packed, padded, 1e-5)
    for side, found in (("chosen", packed[0].logp_chosen_B), ("rejected", packed[0].logp_rejected_B)):
        for row, logp in zip(rows, found, strict=True):
            with torch.no_grad():
                plain = plain_logps(model, row[f"{side}_input_ids"])[row[f"{side}_prompt_tokens"] - 1 :].mean()
            torch.testing.assert_close(logp, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FAST)
def test_text_reaches_all_weights_but_those_outside_in_training_mode(kind):
    model = multimodal_model(kind).train()
    logps = pair_logps(model, PairCollator(0)([trl_features(row) for row in rows_of(PAIRS)]), pad_token_id=0)
    (logps.nll_sum_B.sum() + logps.logp_rejected_B.sum()).backward()
    outside = {name for name, _ in outside_parameters(model)}
    assert outside or kind in ("gemma4", "gemma4_unified")  # without a tower by default
    assert outside == {name for name, parameter in model.named_parameters() if parameter.grad is None}


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*\.(k_proj|o_proj)"], ids=str)
def test_an_adapter_stays_in_the_text_part(kind, targets):
    model = multimodal_model(kind)
    outside = pattern_of(outside_text(model))
    adapted = add_adapter(model, LoraConfig(target_modules=targets, r=2, init_lora_weights=False))
    ids = torch.tensor([[3, 4, 5, 6]])
    adapted.train()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.logsumexp(-1).sum().backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert any("q_proj" in name or "k_proj" in name for name in trained)
    assert adapted.peft_config["default"].exclude_modules == outside


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_read_text_alone_is_refused_with_the_reason(kind):
    with pytest.raises(ModelError, match=f"^folder: {kind} cannot be trained on pairs of text: .*{REFUSED[kind]}"):
        auto_class_for("folder", settings_of(kind))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(REFUSED)))
def test_every_other_class_is_loaded_as_itself(kind):
    config = settings_of(kind)
    auto_class = auto_class_for("folder", config)
    assert auto_class is auto_class_of(config)
    classes = auto_class._model_mapping[type(config)]
    assert MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[kind] in str(classes)


def test_the_text_part_alone_is_loaded_where_the_checkpoint_names_it():
    config = multimodal_config("qwen3_5")
    for architecture, auto_class in (
        ("Qwen3_5ForCausalLM", "AutoModelForCausalLM"),
        ("Qwen3_5ForConditionalGeneration", "AutoModelForImageTextToText"),
    ):
        config.architectures = [architecture]
        assert auto_class_for("folder", config).__name__ == auto_class


# ---- Every class of the installed transformers


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(REFUSED) - NOT_TRIED))
def test_every_kind_trains_on_text(kind):
    model = multimodal_model(kind).eval()
    verdict = check_forest(model, tiny_tokenizer(), pad_token_id=0, precision=nullcontext)
    assert verdict.forest == (kind not in PADDED), verdict.reason
    if kind in PADDED:
        assert PADDED[kind] in verdict.reason
    elif not verdict.sequence_wise.modules:  # test_sequence_wise.py compares recurrences
        assert_same(*both_paths(model, rows_of(PAIRS)), 1e-5)
    assert len(replies(model, tiny_tokenizer(), [[3, 4, 5], [6, 7, 8, 9]], max_new_tokens=3)) == 2
    if not model.config.is_encoder_decoder:
        test_text_reaches_all_weights_but_those_outside_in_training_mode(kind)
        if kind not in ("molmo2", "git"):
            test_later_tokens_change_nothing_before_them(kind)


@pytest.mark.parametrize("kind", FAST)
def test_later_tokens_change_nothing_before_them(kind):
    model = multimodal_model(kind)
    for is_training in (False, True):
        rows = [trl_features(row) for row in rows_of([([3, 4, 5], [6, 7, 8, 9], [6, 7, 8, 2])])]
        logps = pair_logps(model.train(is_training), PairCollator(0)(rows), pad_token_id=0).response_logp_SL
        torch.testing.assert_close(logps[0, :3], logps[1, :3], rtol=1e-5, atol=1e-5)
