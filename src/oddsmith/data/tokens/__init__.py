"""Turn preference pairs into the tokens that a model is trained on.

pair_tokenizer   pairs to tokens: what is a target, what is dropped
rendering        the text of a pair by the chat template; raises its refusals as ``RowError``
call_arguments   arguments of tool calls as the chat template expects them
left_out         what the chat template leaves out of a pair
turns            which turns of an answer are the assistant's own
marks            marks by which these two find texts in a rendering
pieces           token ids of texts that share parts
tokenized        the tokens of a pair, the reasons to drop one, and truncation
"""
