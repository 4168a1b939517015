"""Predict a run from its settings, before anything is started: memory of a rank, time of a step, balance of the steps.

cards.py         GPUs by name: memory, and the rates that they reach
activations.py   what a micro-batch takes: few layers of the model run without values
ranks.py         weights, gradients, optimizer and what processes exchange, for DDP, FSDP2, ZeRO-2 and 3
efficiency.py    the steps over the real lengths: who waits, what is padding, what is computed once
step_time.py     a roofline over what a step computes, reads, writes and sends
recipe.py        all of it for one recipe
"""
