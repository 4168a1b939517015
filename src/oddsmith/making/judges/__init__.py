"""Score answers: by rules, by a reward model, by a language model behind a server, or by a function of one's own."""
