"""``oddsmith train``, from the command line to the finished run folder."""
