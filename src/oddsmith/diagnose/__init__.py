"""Find what is wrong with a run, ours or another trainer's, by rules over the history of its metrics."""
