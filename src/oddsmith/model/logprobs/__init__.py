"""Compute the mean log-probabilities of the responses of a micro-batch of pairs, exactly and fast.

padded.py          the plain reference: any model, padded batches
packed.py          the fast path: the micro-batch is one prefix forest (``batching/forest.py``), no logits are stored
  attention/       a token attends to its ancestors in the forest, on each device by its best kernel
  sequence_wise.py recurrences and convolutions, beside it or instead, run on the sequences of the row
  current_layout.py  which row the model computes, for all of these layers
  head.py          output layer and log-softmax as one operation; output_transform.py: scales and caps of logits
  memory_saving/   norms, MLPs and LoRA layers that save less for the backward pass
pair_tokens.py     tokens and log-probabilities as a loss of one's own gets them, from either path
paths.py           both paths as the trainer uses them, and ``choose_path``, which asks:
  self_check.py    may this model be packed? It asks mixing.py (what mixes tokens?), and measures on small_copy.py
  token_budget.py  how many tokens of a micro-batch fit into memory?
"""
