"""Read datasets of preference pairs by name, tokenize them, and check them.

sources/        name -> rows               a message names file and line, folder or setting
formats/        row -> PreferencePair      why a row is invalid
tokens/         pair -> tokens             why a template refuses a pair, why a pair is dropped
prepare         rows -> dataset of tokens  adds dataset and row number to these messages
report          counts of rows that were kept, dropped and cut
token_cache     tokens kept for the next start
prompts         prompts without answers, of files and datasets
processes       work spread over processes

checks/         what is wrong with a dataset: ``oddsmith data check``
templates/      chat templates that run with limits
builtin/        the demo's pairs and their house style
"""
