"""Uploading a model's folder with its card: what goes and what stays is decided, and shown, before the network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import ClassVar

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.utils import validate_repo_id

from ..utils.files import read_text
from .cards import CARD_NAME, check_card
from .results import named_files


BELONGS = (
    *(CARD_NAME, "LICENSE*", "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "chat_template.*"),
    *("adapter_config.json", "training_run.json", "training_chains.tsv", "*.png", "*.svg"),
    *("structure_alignment.json", "contact_regression.json", "*_head.json"),
)
"""Patterns of a model's files. Results go where the card names them, others stay unless they are asked for."""

_NEVER = (
    ("a checkpoint of the training", ("checkpoint-*/*", "*/checkpoint-*/*")),
    (
        "state of the training",
        ("optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json", "global_step*"),
    ),
    ("temporary", ("*.tmp", "*.tmp.*", "*.incomplete", "*.lock", "tmp*", "*~", "*.swp")),
    ("hidden", (".*", "*/.*")),
    # training_args.bin is a pickle of the arguments, hub_token among them.
    ("a pickle, which others would have to trust", ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")),
)
_SECRET_NAMES = (".env", ".env.*", "*.pem", "id_rsa*", "id_ed25519*", ".netrc", "*token", "*token.txt", "*secret*")
_SECRET_NAMES += ("credentials*", "*.key", ".git-credentials")
# Of the hub, GitHub, OpenAI and others alike, AWS and PEM files; long enough that no sequence or digest is one.
_SECRET = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|\bapi_org_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{40,}|"
    rb"\bsk-[A-Za-z0-9_-]{32,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_TEXT_LIMIT = 64 * 2**20


@dataclass(frozen=True)
class PushTarget:
    """
    From where to where an upload goes.

    Args:
        folder (`Path`): Of the model or dataset.
        repo_id (`str`): `owner/name`.
        private (`bool`, *optional*): Of a repository that is made for it; by default the owner's setting.
        revision (`str`, *optional*): Branch; the main one by default.
        create_pr (`bool`): Whether it becomes a pull request.
    """

    repo_type: ClassVar[str]
    folder: Path
    repo_id: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False

    def describe_target(self) -> list[str]:
        """Lines for a person to read."""
        visibility = {None: "private or public as its owner's setting says", True: "private", False: "public"}
        kind = f"{self.repo_type} repository; where it is made, {visibility[self.private]}"
        branch = f"branch {self.revision or 'main'}{', as a pull request' if self.create_pr else ''}"
        return [f"{self.folder} -> {self.repo_id} ({kind})", branch]


@dataclass(frozen=True)
class PushPlan(PushTarget):
    """
    What [`push_to_hub`] uploads; `print` shows it.

    Args:
        files (`dict[str, int]`): Bytes of each file that goes.
        left_out (`dict[str, str]`): Why each other file stays.
    """

    repo_type = "model"
    files: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(self.files.values())

    def __str__(self) -> str:
        lines = self.describe_target()
        lines += [f"  {readable_size(size):>10}  {name}" for name, size in self.files.items()]
        lines += [f"  {readable_size(self.size):>10}  in {len(self.files)} files"]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            lines.append(f"stays, {reason}: {shown}")
        return "\n".join(lines)


def plan_push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    include: Sequence[str] = (),
) -> PushPlan:
    """
    What an upload would do; reads files and nothing else.

    Args:
        include (`list[str]`, *optional*): Patterns of further files that go, such as `"figures/*"`.

    Raises:
        ValueError: The folder holds no model, no card or one whose results have no file; a file that would go, or the
            name of one, looks like a secret.
    """
    folder = Path(folder)
    validate_repo_id(repo_id)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; expected the one of a saved model.")
    results = named_files(check_card(folder).text)
    files, left_out = {}, {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if (reason := _why_not(name, (*include, *map(escape, results)))) is None:
            files[name] = path.stat().st_size
        else:
            left_out[name] = reason
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"{folder} holds no weights (*.safetensors); save the model there first.")
    for name in files:
        _check_no_secret(folder, name)
    return PushPlan(folder, repo_id, private, revision, create_pr, files, left_out)


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    dry_run: bool = False,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    include: Sequence[str] = (),
    endpoint: str | None = None,
) -> PushPlan:
    """
    Uploads a model with its card to a repository of the hub, which is made where there is none.

    Checkpoints, optimizer states, pickles and temporary files stay, as does what is no part of a model.

    Args:
        folder (`str` or `os.PathLike`): Of the saved model; with a card (see [`write_model_card`]).
        repo_id (`str`): `owner/name`.
        private (`bool`, *optional*): Of a repository that is made; one that is there keeps its visibility.
        dry_run (`bool`, *optional*, defaults to `False`): Print the plan, and do not touch the network.
        token (`str`, *optional*): By default the one of `hf auth login` or `HF_TOKEN`. It is written nowhere.
        revision (`str`, *optional*): Branch to commit to.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request.
        commit_message (`str`, *optional*): Of the one commit.
        include (`list[str]`, *optional*): Patterns of further files, such as `"figures/*"`.
        endpoint (`str`, *optional*): Of the hub; by default `HF_ENDPOINT` or the public one.

    Returns:
        [`PushPlan`]: What went.

    Raises:
        ValueError: See [`plan_push`].
        RuntimeError: The hub refused; with its words, without the token.
    """
    plan = plan_push(folder, repo_id, private=private, revision=revision, create_pr=create_pr, include=include)
    if dry_run:
        print(plan)
        return plan
    api = HfApi(endpoint=endpoint, token=token)

    def upload() -> None:
        api.create_repo(repo_id, private=private, exist_ok=True)
        # Exactly the plan's files, whatever appears in the folder meanwhile.
        api.create_commit(
            repo_id,
            [CommitOperationAdd(name, _content(plan, name)) for name in plan.files],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )

    hiding_tokens(upload, f"{plan.folder} was not uploaded to {repo_id}.", token)
    return plan


def hiding_tokens(upload: Callable[[], None], failure: str, token: str | None) -> None:
    """Runs `upload`; its errors become a `RuntimeError` that begins with `failure` and shows no token."""
    secrets = [one for one in (token, get_token()) if one]
    try:
        upload()
    except Exception as error:
        # Its request carries the token, and a server may repeat it: neither that nor a chained error is passed on.
        text = f"{type(error).__name__}: {error}"
        for secret in secrets:
            text = text.replace(secret, "<token>")
    else:
        return
    raise RuntimeError(f"{failure} {text}")


def _content(plan: PushPlan, name: str) -> str | bytes:
    """Path of a file; of the card the text, where the code that loads the model names the repository."""
    path = plan.folder / name
    if name != CARD_NAME:
        return str(path)
    text = read_text(path, "a model card")
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    return (text if title is None else text.replace(f'("{title[1]}"', f'("{plan.repo_id}"')).encode()


def _why_not(name: str, include: Sequence[str]) -> str | None:
    """Why a file stays; `None` where it goes."""
    base = name.rsplit("/", 1)[-1]
    for reason, patterns in _NEVER:
        if any(fnmatch(name, pattern) or fnmatch(base, pattern) for pattern in patterns):
            return reason
    if any(fnmatch(name, pattern) for pattern in include):
        return None
    # At the top of the folder only, where Transformers looks for them.
    if "/" not in name and any(fnmatch(name, pattern) for pattern in BELONGS):
        return None
    if name.endswith("_results.json") or name.startswith("results/"):
        return "results that the card does not name"
    return "no part of a model (include=… sends it all the same)"


def _check_no_secret(folder: Path, name: str) -> None:
    """Raises `ValueError` for what looks like a secret; the message says where, and never what."""
    base = name.rsplit("/", 1)[-1].lower()
    if any(fnmatch(base, pattern) for pattern in _SECRET_NAMES):
        raise ValueError(f"{folder / name} looks like a secret by its name; take it out of the folder.")
    path = folder / name
    if path.suffix == ".safetensors" or path.stat().st_size > _TEXT_LIMIT:
        return
    if _SECRET.search(path.read_bytes()):
        raise ValueError(
            f"{path} holds what looks like an access token or private key (not shown); remove it, and revoke it if it "
            "was ever shared."
        )


def readable_size(size: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
