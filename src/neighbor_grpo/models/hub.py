"""Repositories of the Hugging Face Hub: downloaded once, read without a network afterwards, and what keeps them from that."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_cached_repo_tree, get_token, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from neighbor_grpo.errors import UserError, printable, shown

_FULL, _CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EACCES, errno.EPERM, errno.EROFS)
_LOGIN = "log in with hf auth login"


def fetch(repo: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the directory of a repository with the files of `patterns`; download those that are not on this machine.

    Raises UserError that names the cause and its remedy.
    """
    with _explained(repo, revision):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))


def names_in(place: Path, repo: str, revision: str | None) -> list[str]:
    """Return the paths of all files of a repository that was fetched to `place`, whether they are downloaded or not."""
    try:
        return [file.path for file in get_cached_repo_tree(repo, revision=revision)]
    except CachedRepoTreeNotFoundError:  # an older huggingface_hub downloaded it, and there is no network
        return [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]


def size_of(repo: str, revision: str | None, path: str) -> int:
    """Return the bytes of a file of a repository that was fetched, whether it is downloaded or not; 0 if it is unknown."""
    try:
        return next((file.size for file in get_cached_repo_tree(repo, revision=revision) if file.path == path), 0)
    except CachedRepoTreeNotFoundError:
        return 0


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what a download raises into a UserError with the cause and its remedy."""
    try:
        yield
    except Exception as error:  # the libraries for the network have errors of their own
        raise UserError(f"{shown(repo, 200)}: {_cause(error, repo, revision)}") from error


def _cause(error: Exception, repo: str, revision: str | None) -> str:
    """Word why a repository cannot be read, and what to do."""
    match error:
        case HFValidationError():
            return "neither a directory here nor the name of a repository on the hub: check the path"
        case GatedRepoError():
            return f"its authors ask for consent: accept its licence at {constants.ENDPOINT}/{repo}, then {_LOGIN}"
        case DisabledRepoError():
            return "the hub has disabled this repository: choose another model"
        case RepositoryNotFoundError():
            private = "your login has no access to it" if get_token() else f"{_LOGIN} if it is private"
            return f"neither a directory here nor a public repository on the hub: check the name; {private}"
        case RevisionNotFoundError():
            return f"it has no revision {shown(revision)}: choose a branch, a tag or a commit of it"
        case LocalEntryNotFoundError():
            return _unreachable(error, repo, revision)
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"the hub refuses your login ({error.response.status_code}): {_LOGIN} again"
        case HfHubHTTPError():
            return f"the hub answers with an error ({error.response.status_code}): try again later"
        case OSError() if error.errno in _FULL:
            return f"no room for it in {constants.HF_HUB_CACHE} ({error.strerror}): free some, or set HF_HOME to another disk"
        case OSError() if error.errno in _CLOSED:
            return f"{constants.HF_HUB_CACHE} cannot be written ({error.strerror}): check its permissions, or set HF_HOME"
    reason = printable((str(error).strip().splitlines() or [""])[0][:200])
    return f"it was not downloaded ({type(error).__name__}: {reason}): check the network, and try again"


def _unreachable(error: LocalEntryNotFoundError, repo: str, revision: str | None) -> str:
    """Word why the hub is not asked about a repository that is not whole on this machine."""
    there = "only a part of it is" if isinstance(error, IncompleteSnapshotError) else "it is not"
    if isinstance(error.__cause__, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return f"{there} on this machine, and HF_HUB_OFFLINE forbids a download: unset it, or give a directory"
    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError):
        return f"{there} on this machine, and {_cause(cause, repo, revision)}"
    reason = printable(f"{type(cause).__name__}: {cause}".splitlines()[0][:200])
    return f"{there} on this machine, and the hub cannot be reached ({reason}): check the network, or give a directory"
