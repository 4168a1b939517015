"""Steps whose numbers are wrong are kept from the weights: noticed, told, skipped, and in the end gone back from.

``judge`` decides from two facts of a step, ``steps`` is the part of the trainer that finds the facts and does what was
decided, ``pairs`` tells which rows are behind it, ``weights`` which weights are no numbers any more.
"""
