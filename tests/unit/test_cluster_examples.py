"""The files of ``examples/cluster`` are read by those whom they are for, as far as these are installed."""

import json
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from oddsmith.cli.parsing.resolve import build, resolve
from oddsmith.cli.parsing.schema import fields_for_run

EXAMPLES = Path(__file__).parents[2] / "examples" / "cluster"


def test_the_recipe_is_one():
    settings = build(resolve([str(EXAMPLES / "recipe.yaml"), "--no-bf16"], fields_for_run()))
    assert settings.orpo.output_dir == "runs/mine"
    assert settings.data.dataset_name == "trl-lib/ultrafeedback_binarized"


@pytest.mark.parametrize("stage", [2, 3])
def test_the_files_of_deepspeed_leave_to_the_recipe_what_it_says(stage):
    settings = json.loads((EXAMPLES / "deepspeed" / f"zero{stage}.json").read_text(encoding="utf-8"))
    assert settings.pop("zero_optimization") == {"stage": stage}
    assert settings.pop("bf16") == {"enabled": "auto"}
    assert set(settings.values()) == {"auto"}


@pytest.mark.parametrize(
    ("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("zero2", "DEEPSPEED"), ("zero3", "DEEPSPEED")]
)
def test_accelerate_reads_its_files(name, kind):
    """It refuses names that it does not know."""
    config = load_config_from_file(str(EXAMPLES / "accelerate" / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == (kind, 8, "no")
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize(
    ("name", "kind"), [("trainjob", "TrainerV1alpha1TrainJob"), ("jobset", "JobsetV1alpha2JobSet")]
)
def test_kubernetes_files_are_of_the_published_models(name, kind):
    """These drop what they do not know."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    document = yaml.safe_load((EXAMPLES / "kubernetes" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert getattr(models, kind).from_dict(document).to_dict() == document


def test_both_kubernetes_files_start_the_same_training():
    job, jobs = (
        yaml.safe_load((EXAMPLES / "kubernetes" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("trainjob", "jobset")
    )
    trainer = job["spec"]["trainer"]
    node = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = node["template"]["spec"]["containers"]
    words = " ".join(trainer["command"] + trainer["args"]).removeprefix("torchrun ")
    assert container["args"][0].endswith(words)
    assert node["parallelism"] == node["completions"] == trainer["numNodes"]
    assert container["resources"] == trainer["resourcesPerNode"]
