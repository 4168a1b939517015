"""From preference pairs to the tokens that a model is trained on."""
