"""Make preference pairs: prompts are answered, answers are scored, the better is paired with the worse."""
