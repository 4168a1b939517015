"""Checkpoints that are whole or do not exist.

    RUN/checkpoint-STEP/
        model or adapter, tokenizer, card        as ``save_pretrained`` writes them
        optimizer.safetensors + .json            its state; scheduler.json, scaler.json likewise
        process-RANK.safetensors + .json         random states, sums of the log line that is due, budget of tokens
        trainer_state.json                       steps, epochs, logged values, best model
        manifest.json                            written last: size and SHA-256 of every other file, and of which run
    RUN/_quarantine/                             what was passed over when a run was resumed; nothing here is deleted

Nothing is pickled. ``manifest`` makes and verifies, ``choose`` finds the one to go on from, ``changes`` tells whether
it is of the same run, ``state`` writes nested tensors, ``lock`` keeps a second process out of the run folder, and
``saving`` is the part of the trainer that uses all this.
"""
