"""``oddsmith train``: train a model, from the command line to the finished run folder."""
