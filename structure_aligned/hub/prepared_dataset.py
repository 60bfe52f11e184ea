"""Prepared datasets on the hub: uploading one with its card, so that nobody else needs structures or a pGNN."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pyarrow as pa
from huggingface_hub import DatasetCardData, HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..data.builder import FEATURES
from ..utils.names import markdown_cell as _cell
from .cards import CARD_NAME
from .push import PushTarget, hiding_tokens, readable_size
from .template import CITATIONS


SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))


@dataclass(frozen=True)
class DatasetPushPlan(PushTarget):
    """
    What [`push_dataset_to_hub`] uploads; `print` shows it.

    Args:
        splits (`dict[str, dict[str, int]]`): Of each split the chains, residues and bytes (as Arrow, uncompressed).
        pgnns (`list[str]`): What the embeddings are of.
        card (`str`): Text of the card.
    """

    repo_type = "dataset"
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    pgnns: list[str] = field(default_factory=list)
    card: str = ""

    def __str__(self) -> str:
        lines = self.describe_target()
        for name, counts in self.splits.items():
            size = readable_size(counts["bytes"])
            lines.append(f"  {size:>10}  {name}: {counts['chains']} chains, {counts['residues']} residues")
        lines.append(f"  {readable_size(len(self.card.encode())):>10}  {CARD_NAME}, unless the repository has one")
        lines.append(f"embeddings of {', '.join(self.pgnns)}")
        lines.append("Parquet files are somewhat smaller. Structures, paths and reports of what was left out stay.")
        return "\n".join(lines)


def plan_dataset_push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> DatasetPushPlan:
    """
    What an upload would do; reads files and nothing else.

    Raises:
        ValueError: The folder holds no finished dataset with this package's columns, or one without chains.
    """
    validate_repo_id(repo_id)
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder; expected the one of a prepared dataset.")
    data = load_prepared_dataset(folder)
    splits, pgnns = {}, set()
    for name, rows in data.items():
        lengths = rows.data.column("length").to_numpy()
        splits[name] = {"chains": len(rows), "residues": int(lengths.sum()), "bytes": rows.data.nbytes}
        pgnns.update(rows.unique("pgnn"))
    if not any(counts["chains"] for counts in splits.values()):
        raise ValueError(f"{folder} has no chains in any split; there is nothing to upload.")
    card = _card(repo_id, splits, sorted(pgnns), license)
    return DatasetPushPlan(Path(folder), repo_id, private, revision, create_pr, splits, sorted(pgnns), card)


def push_dataset_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    dry_run: bool = False,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload dataset",
    max_shard_size: str = "500MB",
) -> DatasetPushPlan:
    """
    Uploads a dataset of examples/prepare.py as Parquet, with a card, to a repository that is made where there is none;
    `datasets.load_dataset(repo_id)` and `examples/train.py --dataset owner/name` take it from there.

    A card that the repository has already stays, and gets what Datasets notes in it.

    Args:
        folder (`str` or `os.PathLike`): Of the finished dataset.
        repo_id (`str`): `owner/name`.
        license (`str`, *optional*): Identifier of the hub, such as `cc0-1.0`; what you may grant depends on where the
            structures and the pGNN are from.
        private (`bool`, *optional*): Of a repository that is made; one that is there keeps its visibility.
        dry_run (`bool`, *optional*, defaults to `False`): Print the plan, and do not touch the network.
        token (`str`, *optional*): By default the one of `hf auth login` or `HF_TOKEN`. It is written nowhere.
        revision (`str`, *optional*): Branch to commit to.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request.
        commit_message (`str`, *optional*): Of the commit with the data.
        max_shard_size (`str`, *optional*): Of a Parquet file, before it is compressed.

    Returns:
        [`DatasetPushPlan`]: What went.

    Raises:
        ValueError: See [`plan_dataset_push`].
        RuntimeError: The hub refused; with its words, without the token.
    """
    plan = plan_dataset_push(folder, repo_id, license=license, private=private, revision=revision, create_pr=create_pr)
    if dry_run:
        print(plan)
        return plan

    def upload() -> None:
        api = HfApi(endpoint=datasets.config.HF_ENDPOINT, token=token)
        where = {"repo_id": repo_id, "repo_type": "dataset"}
        api.create_repo(**where, private=private, exist_ok=True)
        branch = revision
        if branch is not None and not create_pr:
            api.create_branch(**where, branch=branch, exist_ok=True)
        # The card first: Datasets adds the splits, columns and files to its metadata. A pull request begins with it,
        # and takes the data into itself.
        if create_pr or not api.file_exists(**where, filename=CARD_NAME, revision=branch):
            sent = api.upload_file(
                **where,
                path_or_fileobj=plan.card.encode(),
                path_in_repo=CARD_NAME,
                commit_message="Add the card of the dataset",
                revision=branch,
                create_pr=create_pr,
            )
            branch = sent.pr_revision if create_pr else branch
        load_prepared_dataset(plan.folder).push_to_hub(
            repo_id, token=token, revision=branch, commit_message=commit_message, max_shard_size=max_shard_size
        )

    hiding_tokens(upload, f"{plan.folder} was not uploaded to {repo_id}.", token)
    return plan


def load_prepared_dataset(name: str | os.PathLike, revision: str | None = None) -> datasets.DatasetDict:
    """
    A dataset of examples/prepare.py, from its folder or from the hub.

    Args:
        name (`str` or `os.PathLike`): The folder, or `owner/name` of what [`push_dataset_to_hub`] uploaded.
        revision (`str`, *optional*): Branch or commit on the hub.

    Raises:
        ValueError: What is there is no finished dataset with this package's columns.
        FileNotFoundError: There is no such folder, and nothing of that name on the hub or in its local cache.
    """
    expected = "expected the finished output of examples/prepare.py, or one that was uploaded"
    if Path(name).exists():
        try:
            data = datasets.load_from_disk(name)
        except FileNotFoundError:
            raise ValueError(f"{name} holds no dataset; {expected}.") from None
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"The dataset in {name} is damaged ({error}); {expected}.") from error
    else:
        try:
            validate_repo_id(str(name))
            data = datasets.load_dataset(str(name), revision=revision)
        except (HFValidationError, FileNotFoundError, ConnectionError) as error:
            raise FileNotFoundError(
                f"There is no folder {name}, and no dataset of that name could be had from the hub ({error}). Give "
                "the folder that examples/prepare.py wrote, or owner/name of one that was uploaded."
            ) from error
    if not isinstance(data, datasets.DatasetDict):
        raise ValueError(f"{name} holds a {type(data).__name__}; {expected}, a DatasetDict.")
    for split, rows in data.items():
        if missing := sorted(set(FEATURES) - set(rows.column_names)):
            raise ValueError(
                f"Split {split} of {name} has no column {', '.join(missing)}; {expected}. Datasets that an earlier "
                "version prepared have to be prepared again."
            )
    return data


def _card(repo_id: str, splits: dict[str, dict[str, int]], pgnns: list[str], license: str | None) -> str:
    chains = sum(counts["chains"] for counts in splits.values())
    metadata = DatasetCardData(
        license=license,
        pretty_name=repo_id.rsplit("/", 1)[-1],
        size_categories=next((name for name, limit in SIZES if chains < limit), "10M<n<100M"),
        tags=["biology", "protein-structure", "structure-alignment", "foldseek-3di"],
    )
    rows = "\n".join(f"| {_cell(name)} | {own['chains']:,} | {own['residues']:,} |" for name, own in splits.items())
    models = "\n".join(f"* `{_cell(pgnn)}`" for pgnn in pgnns)
    return f"""\
---
{metadata.to_yaml()}
---

# {metadata.pretty_name}

Protein chains with a Foldseek 3Di token and an embedding of a frozen protein graph neural network (pGNN) for each
residue: what `structure_aligned` trains a protein language model on. It was made from structure files by
`examples/prepare.py`; the structures themselves are not in it.

| split | chains | residues |
|---|---:|---:|
{rows}

## How to use

```python
from datasets import load_dataset
from structure_aligned import decode_embedding

data = load_dataset("{repo_id}")
row = data["{next(iter(splits))}"][0]
embedding = decode_embedding(row)  # (residues, width), float16
```

```bash
python examples/train.py --dataset {repo_id} --model_name_or_path facebook/esm2_t6_8M_UR50D
```

## Columns

| column | of each chain |
|---|---|
| `id`, `entry`, `chain` | a label; the entry, and the chain's id in it |
| `sequence`, `length` | one letter per observed residue; their number |
| `structure_tokens`, `structure_token_mask` | Foldseek 3Di state of each residue, 0 to 19, and where there is one |
| `structure_embedding`, `…_shape`, `…_mask` | the pGNN's, float16 bytes; their shape, and where there is one |
| `b_factors` | of each residue in Å², or pLDDT (0 to 100) where `predicted` |
| `resolution`, `r_free`, `method`, `deposition_date`, `predicted` | of the entry, as its file states them |
| `digest`, `pgnn` | of the chain's content; name, width and digest of the pGNN |

Where there are columns `reference_losses` and `reference`, they hold the residue losses of a reference model.

## pGNN

{models}

An aligned model and its data must be of the same pGNN: embeddings of another one are refused by the training.

## Citation

```bibtex
{CITATIONS["Foldseek"]}

{CITATIONS["method"]}
```
"""
