"""Checkpoints that are complete or do not exist.

    RUN/checkpoint-STEP/
        model or adapter, tokenizer, card        as ``save_pretrained`` writes them
        optimizer.safetensors + .json            its state; scheduler.json, scaler.json likewise
        process-RANK.safetensors + .json         rank state: random states, sums not logged yet, token budget
        trainer_state.json                       steps, epochs, logged values, best model
        manifest.json                            written last: size and SHA-256 of every other file, and of which run
    RUN/_quarantine/                             damaged checkpoints that a resume passed over; nothing here is deleted

Nothing is pickled.

manifest        writes and verifies the manifest
store           which checkpoint to resume from, which to remove, why one could not be written
state           optimizer, random and rank states as safetensors and JSON
compatibility   whether a checkpoint is of the same run
space           how large a checkpoint becomes, and how many fit
lock            keeps a second process out of the run folder
"""
