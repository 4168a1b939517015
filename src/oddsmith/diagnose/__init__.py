"""What is wrong with a run, from its metrics alone: rules over a history, ours or any trainer's."""
