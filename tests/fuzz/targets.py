"""All targets by name."""

from tests.fuzz import of_checkpoints, of_models, of_requests, of_rows, of_runs, of_settings, of_tables
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    **of_rows.TARGETS,
    **of_settings.TARGETS,
    **of_runs.TARGETS,
    **of_checkpoints.TARGETS,
    **of_tables.TARGETS,
    **of_requests.TARGETS,
    **of_models.TARGETS,
}
