"""Upload a verified export to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import validate_repo_id

from ..errors import ConfigError, ExportError, first_line
from ..system.outside import require_plain_folder


def require_publishable(repository: str) -> None:
    """Raise ``ConfigError`` for an upload to ``owner/name`` that would fail at the end of a long export.

    Checked without the network: whether the name is possible, there is a login, and the hub is not switched off.
    """
    try:
        validate_repo_id(repository)
    except hub_errors.HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repository}: is no possible name on the hub; expected OWNER/NAME") from error
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("--push-to-hub: the hub is switched off (HF_HUB_OFFLINE is set)")
    if get_token() is None:
        raise ConfigError("--push-to-hub: there is no login to the hub; log in with: hf auth login")


def publish(folder: Path, repository: str) -> str:
    """Upload a folder to ``owner/name`` and return the address; a new repository is private.

    A link in the folder is a ``NotAFileError``: the file that it leads to would be uploaded.
    """
    require_plain_folder(folder)
    api = HfApi()
    with upload_failures(folder, repository):
        url = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by Oddsmith")
    return str(url)


@contextmanager
def upload_failures(folder: Path, repository: str) -> Iterator[None]:
    """Turn a failed upload into an ``ExportError`` that says how to upload the complete folder later."""
    try:
        yield
    except (hub_errors.HfHubHTTPError, OSError, ValueError) as error:  # ValueError: the hub refuses the card
        reason = first_line(error) or type(error).__name__
        raise ExportError(
            f"{folder} is complete and verified, but was not uploaded: {reason};"
            f" upload it later with: hf upload {repository} {folder}"
        ) from error
