"""Fuzzing of everything that reads what others wrote: rows, settings, event logs, other logs, checkpoints.

    answers.py      what may come back: a result, or an error that can be shown; within time and memory
    material.py     the input: sound files with faults in them, values of every kind, words
    of_*.py         the readers, each as a target: a strategy and a function that takes what it draws
    targets.py      all targets by name

`make test` runs a few examples per target, always the same; `make fuzz MINUTES=60` runs new ones for that long.
"""
