"""Anything at all, given to whatever reads what others wrote: rows, settings, diaries, logs, checkpoints.

    answers.py      what may come back: a result, or an error of ours that can be shown; within a time and a memory
    material.py     what is given: sound files with faults in them, values of every kind, words
    of_*.py         the readers, each as a target: a strategy and a function that takes what it draws
    targets.py      all of them by name

`make test` gives every target a few examples, always the same; `make fuzz MINUTES=60` new ones for that long.
"""
