"""What models do to their logits after the head, against the models themselves."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, T5Config
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from oddsmith.model.logprobs.output_transform import OutputTransform, output_transform

SIZE = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
KNOWN = {
    "llama": ({}, OutputTransform()),
    "gemma2": ({"final_logit_softcapping": 3.0}, OutputTransform(1.0, 3.0)),
    "gemma3_text": ({"final_logit_softcapping": 3.0}, OutputTransform(1.0, 3.0)),
    "nanochat": ({"final_logit_softcapping": 3.0}, OutputTransform(1.0, 3.0)),
    "recurrent_gemma": ({"logits_soft_cap": 3.0, "num_hidden_layers": 3, "lru_width": 16}, OutputTransform(1.0, 3.0)),
    "cohere": ({"logit_scale": 0.25}, OutputTransform(0.25)),
    "cohere2": ({"logit_scale": 0.25}, OutputTransform(0.25)),
    "granite": ({"logits_scaling": 4.0}, OutputTransform(0.25)),
    "hyperclovax": ({"logits_scaling": 4.0}, OutputTransform(4.0)),
    "minicpm3": ({"dim_model_base": 4, "q_lora_rank": 8, "kv_lora_rank": 8}, OutputTransform()),
}


@pytest.mark.parametrize("model_type", KNOWN)
def test_the_transform_of_the_heads_output_is_the_models_logits(model_type):
    settings, expected = KNOWN[model_type]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SIZE, **settings})).eval()
    transform = output_transform(model.config)
    assert transform == expected
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    with torch.no_grad():
        logits = model(torch.arange(3, 12)[None], use_cache=False).logits
    torch.testing.assert_close(transform.apply(seen[0]), logits)
    torch.testing.assert_close(transform.apply_(seen[0]), logits)


@pytest.mark.parametrize(
    "config",
    [
        T5Config(),
        AutoConfig.for_model("chameleon"),
        AutoConfig.for_model("inkling_text"),
        LlamaConfig(final_logit_softcapping=30.0),
        LlamaConfig(logits_scaling=8.0),
        AutoConfig.for_model("llava", text_config={"model_type": "gemma2"}),  # it does not use the text part's cap
    ],
    ids=lambda config: config.model_type,
)
def test_unknown_models_have_no_transform(config):
    assert output_transform(config) is None


WITHOUT_LAYER_INPUTS = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
BESIDE_DEFAULTS = {"gemma4_assistant": {"text_config": WITHOUT_LAYER_INPUTS}}


def assignments_to_logits(model_type: str, class_name: str) -> list[str]:
    """Right-hand sides of the assignments to logits in a model's class, read from its source."""
    folder = Path(transformers.__file__).parent / "models" / model_type_to_module_name(model_type)
    for path in folder.glob("modeling_*.py"):
        found = re.search(rf"^class {class_name}\(.*?(?=^class |\Z)", path.read_text(encoding="utf-8"), re.M | re.S)
        if found:
            return re.findall(r"^ +(?:lm_)?logits(?:\[.*\])? = (.*)$", found[0], re.M)
    return []  # a class of another model's


def does_more_than_its_head(model_type: str, class_name: str) -> bool:
    hidden = r"\w+(\[\w+\]|\[:, \w+, :\]|\.\w+|\.to\([\w.=]+\))?"
    called = rf"self\.\w+\(({hidden}|self\.\w+\({hidden}\))\)(\.float\(\)|\.contiguous\(\))?"
    handed_on = r"\w*outputs?(\.logits|\[0\])"
    assigned = assignments_to_logits(model_type, class_name)
    return any(not re.fullmatch(f"{called}|{handed_on}", made) for made in assigned)


def test_no_decoder_of_transformers_is_overlooked():
    """A model that does more than call its head has a transform once its settings are not neutral."""
    unusual, overlooked = [], []
    classes = [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items(), *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.items()]
    for model_type, class_name in dict.fromkeys(classes):
        if not does_more_than_its_head(model_type, class_name):
            continue
        unusual.append(model_type)
        config = AutoConfig.for_model(model_type, **BESIDE_DEFAULTS.get(model_type, {}))
        settings = config.get_text_config() if not model_type.startswith("musicgen") else config
        names = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
        for name in names:
            if hasattr(settings, name):
                setattr(settings, name, 3.0)
        if output_transform(config) == OutputTransform():
            overlooked.append(model_type)
    assert len(unusual) >= 35
    assert set(overlooked) <= {"blip-2", "paligemma"}  # it hands on what its text part made; by default uncapped
