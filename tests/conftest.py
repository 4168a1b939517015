"""Settings for every test: no network, few threads, reproducible."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

settings.register_profile("oddsmith", deadline=None, derandomize=True)
settings.load_profile("oddsmith")
