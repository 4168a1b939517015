"""A model file, ``SmolLM2-135M-Instruct.Q4_1.gguf``; Oddsmith finds it by the name of the package."""
