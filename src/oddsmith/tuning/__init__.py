"""Search settings by short trainings (probes), judged on held-out pairs; ``objective.py`` says how."""
