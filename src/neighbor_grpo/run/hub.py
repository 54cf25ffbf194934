"""The hub of Hugging Face: whether it takes an export, and sending one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.files.atomic import MANIFEST

_LEAVE = "or leave out --push"


def check(repo: str, private: bool) -> None:
    """Ask the hub whether this user may write to a repository.  Raises UserError that names the cause.

    Nothing is made or changed there.  private: the repository, if it exists, must be private.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    owner, slash, _ = repo.partition("/")
    try:
        validate_repo_id(repo)
    except HFValidationError:
        slash = ""
    if not slash:
        raise UserError(f"--push {shown(repo)} is not the name of a repository: write NAME/REPO, of letters, digits, - _ and .")
    api = HfApi()
    with _failures(repo):
        user = api.whoami()
        names = [user["name"], *(group["name"] for group in user.get("orgs", []))]
        if owner not in names:
            raise UserError(f"--push {repo}: this token writes for {', '.join(names)}: choose one of these names, {_LEAVE}")
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(f"--push {repo}: this token may only read: make one that may write, {_LEAVE}")
        try:
            public = not api.model_info(repo).private
        except RepositoryNotFoundError:  # it will be made
            return
    if private and public:
        raise UserError(f"--private: {repo} exists and is public: leave out --private, or choose another name")


def push(folder: Path, repo: str, private: bool) -> str:
    """Send the files of an export to a repository, which is made if it does not exist; return its address.

    Raises UserError that says how to send the files later.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _failures(repo, f"; the export is in {folder}: later, hf upload {repo} {folder}"):
        place = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Upload by neighbor-grpo",
            ignore_patterns=[f"**/{MANIFEST}", MANIFEST],
        )
    return str(place)


@contextmanager
def _failures(repo: str, more: str = "") -> Iterator[None]:
    """Turn what keeps the hub from answering into a UserError by its cause; `more` ends it."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UserError(f"--push {repo}: no token for the hub: run hf auth login, set HF_TOKEN, {_LEAVE}{more}") from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"--push {repo}: HF_HUB_OFFLINE forbids the network: unset it, {_LEAVE}{more}") from error
    except HfHubHTTPError as error:
        raise UserError(f"--push {repo}: {_cause(error.response.status_code)}{more}") from error
    except (HTTPError, OSError) as error:
        raise UserError(f"--push {repo}: the hub cannot be reached ({error}): check the network, {_LEAVE}{more}") from error


def _cause(status: int) -> str:
    """Say what an answer of the hub means, and what to do."""
    if status == 401:
        return f"the hub does not know this token: run hf auth login, {_LEAVE}"
    if status == 403:
        return f"this token may not write there: use one that may, another name, {_LEAVE}"
    return f"the hub answered {status}: try again later, {_LEAVE}"
