"""Everything a user can get wrong, with the error message: run as tests, and printed as ``docs/errors.md``.

python -m tests.bad_inputs > docs/errors.md
"""

from tests.bad_inputs import checkpoints, commands, data, models, pairs, settings, together
from tests.bad_inputs.case import BadInput

# Heading of docs/errors.md -> its rows.
GROUPS: dict[str, tuple[BadInput, ...]] = {
    "The file of settings": settings.IN_A_FILE,
    "Flags": settings.FLAGS,
    "Settings that make no sense": together.TOGETHER,
    "The run folder": together.RUN_FOLDER,
    "Datasets": data.SOURCES,
    "Files of pairs": data.FILES,
    "Pairs": pairs.ROWS,
    "Mixtures, splits and evaluation": data.MIXTURES,
    "Models": models.MODELS,
    "Tokenizers and chat templates": models.TOKENIZERS,
    "Adapters": models.ADAPTERS,
    "Checkpoints": checkpoints.CHECKPOINTS,
    "The other commands": commands.COMMANDS,
}
