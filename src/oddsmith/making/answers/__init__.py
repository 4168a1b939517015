"""Answer questions several times: with transformers, with llama.cpp, or by a server; or read answers from a file.

Each answer is drawn with a seed of its own (``drawing.py``), so that it does not matter when it is asked for.
"""
