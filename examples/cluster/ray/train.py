"""Train a recipe with Ray Train: each worker is one process of the run, which goes on from its last checkpoint.

    python train.py recipe.yaml --workers 8 --gpu --storage s3://bucket/ray

Ray starts the workers, tells them of each other, and starts them again when one is lost. Every checkpoint is copied to
Ray's storage; workers that are started again, on whatever machines, get it from there. The recipe's ``output_dir`` has
to be in a folder that all workers see; with all of them on one machine any folder is.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from transformers import TrainerCallback


class ReportToRay(TrainerCallback):
    """Reports each checkpoint, and the newest value of each metric."""

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        metrics = {name: value for line in state.log_history for name, value in line.items()}
        # All workers report, the first one the files.
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder) if args.process_index == 0 else None)


def train_in_worker(config: dict) -> None:
    """Train in one of the workers."""
    from oddsmith import trainer_from_recipe

    trainer = trainer_from_recipe(*config["words"], callbacks=[ReportToRay()])
    checkpoint = ray.train.get_checkpoint()  # None in a new run
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        trainer.train(resume_from_checkpoint=folder)
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()


def main(words: list[str] | None = None) -> None:
    """Start the run, and wait for its end."""
    parser = argparse.ArgumentParser(description="Train a recipe with Ray Train.", allow_abbrev=False)
    parser.add_argument("recipe", help="a recipe of `oddsmith train`; unknown flags are settings, as of the command")
    parser.add_argument("--workers", type=int, default=2, help="processes of the run")
    parser.add_argument("--gpu", action="store_true", help="give each worker a GPU")
    parser.add_argument("--storage", required=True, help="where Ray keeps checkpoints: a shared folder, s3://, gs://")
    parser.add_argument("--name", default="oddsmith", help="of the run in the storage; the same name goes on with it")
    parser.add_argument("--max-failures", type=int, default=20, help="how often lost workers are replaced")
    options, settings = parser.parse_known_args(words)
    TorchTrainer(
        train_in_worker,
        train_loop_config={"words": [str(Path(options.recipe).absolute()), *settings]},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=RunConfig(
            name=options.name,
            storage_path=options.storage,
            failure_config=FailureConfig(max_failures=options.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()


if __name__ == "__main__":
    main()
