"""Save, verify and select checkpoints, each of which is complete or does not exist.

    RUN/checkpoint-STEP/
        model or adapter, tokenizer, card        as ``save_pretrained`` writes them
        optimizer.safetensors + .json            its state; scheduler.json, scaler.json likewise
        process-RANK.safetensors + .json         rank state: random states, sums not logged yet, token budget
        trainer_state.json                       steps, epochs, logged values, best model
        manifest.json                            written last: size and SHA-256 of every other file, and of which run
    RUN/_quarantine/                             damaged checkpoints that a resume skipped; nothing here is deleted

Nothing is pickled.

manifest        writes and verifies the manifest
store           selects the checkpoint to resume from and those to remove, and explains failed saves
state           writes nested states as safetensors and JSON
rank_state      writes the random states and the states of the trainer's parts, for each process
compatibility   compares the run of a checkpoint with the run that resumes
space           estimates the size of a checkpoint, and how many fit
lock            keeps a second process out of the run folder
"""
