"""The reference model's losses of every residue of a dataset, computed once and kept beside the rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from datasets.utils import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.digest import digest_of
from ..models.modes import evaluating
from ..models.trunks import tokenizer_of
from ..objectives.losses import IGNORE_INDEX, labelled_cross_entropy
from ..objectives.reference import contrastive_parts
from .builder import dataset_pgnn
from .collator import DataCollatorForStructureAlignment
from .features import REFERENCE_COLUMNS, combined_digest, decode_embedding
from .records import DamagedRecordError, read_arrays, write_record
from .relatives import Clusters
from .seen import check_unseen


REFERENCE_VERSION = 1
"""Raise when the same model gives other reference losses for the same row."""

POOL_PROTEINS = 64
"""The pool's residues come from as many proteins at most."""

_RESIDUE_COLUMNS = ("structure_tokens", "structure_token_mask", "structure_embedding_mask")

_FEATURES = datasets.Features(
    {"reference_losses": datasets.Value("large_binary"), "reference": datasets.Value("string")}
)


def reference_identity(model: PreTrainedModel) -> str:
    """Name of a reference model and its weights, `class:digest`."""
    fields = {"structure_alignment": model.config.structure_alignment}
    return f"{type(model).__name__}:{digest_of(model, fields)[:32]}"


def attach_reference_losses(
    dataset: datasets.Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    num_maskings: int = 4,
    pool_size: int = 2048,
    pool: datasets.Dataset | None = None,
    mlm_probability: float = 0.15,
    max_length: int = 2048,
    max_batch_tokens: int = 4096,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    allow_seen: bool = False,
    clusters: Clusters | None = None,
) -> datasets.Dataset:
    """
    Adds the reference model's per-residue losses to a dataset: columns `reference_losses` and `reference`.

    A loss varies with the masked residues, so each number is the mean over several seeded maskings. The contrastive
    ones vary with the batch as well; they are stored in parts from which [`rebuild_contrastive_losses`] makes those of
    any batch. What was computed before, or by another process, is read from the cache.

    Under `accelerate launch` the processes share the work; each returns the whole dataset.

    Args:
        dataset (`datasets.Dataset`): As [`StructureDatasetBuilder`] makes it.
        model (`PreTrainedModel`): Alignment model with trained heads, on the device to compute on.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The model's; by default that of its family.
        num_maskings (`int`, *optional*, defaults to 4): Maskings to average over.
        pool_size (`int`, *optional*, defaults to 2048): Residues that stand for those of other proteins.
        pool (`datasets.Dataset`, *optional*): Where they are drawn from; `dataset` by default.
        mlm_probability (`float`, *optional*, defaults to 0.15): As in the training that it is for.
        max_length (`int`, *optional*, defaults to 2048): Tokens; longer proteins are computed in consecutive windows.
        max_batch_tokens (`int`, *optional*, defaults to 4096): Padded tokens of one forward pass.
        seed (`int`, *optional*, defaults to 0): Of the maskings and of the pool.
        cache_dir (`str`, *optional*): Folder of the results; beside the dataset's own files by default.
        allow_seen (`bool`, *optional*, defaults to `False`): Take a model that was trained on chains of `dataset`, or
            that does not say what it was trained on.
        clusters (`str`, `os.PathLike` or `dict`, *optional*): Chains of one cluster count as seen together; see
            [`read_clusters`].

    Raises:
        ValueError: The dataset's pGNN is not the model's, or the model was trained on chains of the dataset.
    """
    if num_maskings < 1 or pool_size < 1:
        raise ValueError(f"num_maskings is {num_maskings} and pool_size {pool_size}; expected at least 1 of each.")
    _check_pgnn(dataset, model)
    if not allow_seen:
        check_unseen(dataset, model, clusters)
    tokenizer = tokenizer_of(model.config) if tokenizer is None else tokenizer
    pool_rows = _pool_rows(dataset if pool is None else pool, seed)
    reference = reference_identity(model)
    settings = combined_digest(
        [
            f"{REFERENCE_VERSION}|{num_maskings}|{mlm_probability}|{max_length}|{seed}|{pool_size}",
            f"{reference}|{dataset_pgnn(dataset)}",
            *map(_owner, pool_rows),
        ]
    )[:16]
    plain = dataset.with_format(None)
    folder = Path(cache_dir) if cache_dir is not None else _beside(dataset)
    paths = [folder / settings / name[:2] / f"{name}.safetensors" for name in _record_names(plain)]
    lengths = plain["length"][:]
    missing = [index for index, path in enumerate(paths) if not path.exists()]
    missing.sort(key=lambda index: -lengths[index])  # the largest batch first: memory runs out at once or never
    state = PartialState()
    state.wait_for_everyone()  # until all have looked: each takes its share of one and the same list
    mine = missing[state.process_index :: state.num_processes]
    if mine:
        collator = DataCollatorForStructureAlignment(tokenizer, mlm_probability, max_length, seed=seed)
        with evaluating(model), tqdm(total=len(mine), desc="Reference losses", unit="chain") as progress:
            judge = _Judge(model, collator, num_maskings, max_batch_tokens)
            judge.fill_pool(pool_rows, pool_size, seed)
            for batch in _batches(mine, lengths, max_batch_tokens):
                rows = [plain[index] for index in batch]
                for index, losses in zip(batch, judge(rows)):
                    write_record(paths[index], {"losses": losses}, {"reference": reference})
                progress.update(len(batch))
    state.wait_for_everyone()
    return _with_columns(dataset, paths, f"{reference}:{settings}")


class _Judge:
    """Runs the reference model over rows, masking by masking, and takes its losses apart."""

    def __init__(
        self,
        model: PreTrainedModel,
        collator: DataCollatorForStructureAlignment,
        num_maskings: int,
        max_batch_tokens: int,
    ) -> None:
        self.model, self.collator = model, collator
        self.num_maskings, self.max_batch_tokens = num_maskings, max_batch_tokens
        self.pools: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.pool_owners: np.ndarray = np.empty(0, dtype=object)

    def fill_pool(self, rows: list[dict[str, Any]], size: int, seed: int) -> None:
        """Projections, under each masking, of `size` residues, about as many from every row."""
        share = -(-size // len(rows))
        drawn, owners = [], []
        for row in rows:
            present = np.flatnonzero(row["structure_embedding_mask"][: self.collator.max_residues])
            rng = np.random.default_rng(_number(f"{seed}|{row['id']}"))
            drawn.append(np.sort(rng.permutation(len(present))[:share]))
            owners += [_owner(row)] * len(drawn[-1])
        self.pool_owners = np.array(owners[:size], dtype=object)
        first = [_cut(row, 0, self.collator.max_residues) for row in rows]
        for masking in range(self.num_maskings):
            parts = [
                (sequence[chosen], structure[chosen])
                for (_, sequence, structure), chosen in zip(self._projections(first, masking), drawn)
            ]
            sequence, structure = (torch.cat(kind)[:size] for kind in zip(*parts))
            self.pools.append((sequence, structure))

    def __call__(self, rows: list[dict[str, Any]]) -> list[np.ndarray]:
        """One float32 array of shape `(L, 6)` per row: `REFERENCE_COLUMNS`, means over the maskings."""
        window = self.collator.max_residues
        pieces = [
            (owner, start, _cut(row, start, start + window))
            for owner, row in enumerate(rows)
            for start in range(0, len(row["sequence"]), window)
        ]
        losses = [np.zeros((len(row["sequence"]), len(REFERENCE_COLUMNS))) for row in rows]
        scale = self.model.alignment.logit_scale.detach().squeeze(0).exp()
        for masking in range(self.num_maskings):
            projected = self._projections([piece for *_, piece in pieces], masking)
            for (owner, start, piece), (token, sequence, structure) in zip(pieces, projected):
                found = losses[owner][start : start + len(piece["sequence"])]
                labelled, present = (np.asarray(piece[f"structure_{kind}_mask"]) for kind in ("token", "embedding"))
                found[~labelled, 0] = found[~present, 1:] = np.nan
                found[labelled, 0] += token.double().cpu().numpy() / self.num_maskings
                foreign = torch.from_numpy(np.flatnonzero(self.pool_owners != _owner(piece))).to(sequence.device)
                pool_sequence, pool_structure = (kind[foreign] for kind in self.pools[masking])
                parts = contrastive_parts(sequence, structure, scale, pool_sequence, pool_structure)
                found[present, 1:] += parts.double().cpu().numpy() / self.num_maskings
        arrays = [array.astype(np.float32) for array in losses]
        for row, array in zip(rows, arrays):
            labelled, present = (np.asarray(row[f"structure_{kind}_mask"]) for kind in ("token", "embedding"))
            if not (np.isfinite(array[labelled, 0]).all() and np.isfinite(array[present, 1:]).all()):
                raise ValueError(
                    f"The reference model's losses of {row['id']} are not finite; give another model, or run it in "
                    "float32 or bfloat16."
                )
        return arrays

    @torch.no_grad()
    def _projections(
        self, pieces: list[dict[str, Any]], masking: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Per piece: token losses, and the two projections of its residues with an embedding."""
        self.collator.set_epoch(masking)
        device = self.model.device
        for batch in _batches(range(len(pieces)), [len(p["sequence"]) for p in pieces], self.max_batch_tokens):
            inputs = {name: values.to(device) for name, values in self.collator([pieces[i] for i in batch]).items()}
            outputs = self.model(
                inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                structure_embeddings=inputs["structure_embeddings"],
            )
            token = labelled_cross_entropy(outputs.structure_logits, inputs["structure_labels"])
            token = token.split((inputs["structure_labels"] != IGNORE_INDEX).sum(1).tolist())
            for index, own in enumerate(inputs["residue_mask"]):
                yield token[index], outputs.sequence_projection[index][own], outputs.structure_projection[index][own]


def _check_pgnn(dataset: datasets.Dataset, model: PreTrainedModel) -> None:
    settings = getattr(model.config, "structure_alignment", None)
    if settings is None or not hasattr(model, "alignment"):
        raise ValueError(
            f"A {type(model).__name__} has no alignment heads to judge residues with; expected a model of "
            "AutoModelForStructureAlignment that was trained on high-quality structures."
        )
    found = dataset_pgnn(dataset)
    if settings["pgnn"] != found:
        raise ValueError(
            f"The dataset's embeddings come from the pGNN {found} but the reference model was trained with "
            f"{settings['pgnn']}. Both must be made with the same pGNN."
        )


def _pool_rows(dataset: datasets.Dataset, seed: int) -> list[dict[str, Any]]:
    """Rows that the pool is drawn from; a matter of their ids and the seed, not of their order."""
    plain = dataset.with_format(None)
    draws = [_number(f"{seed}|{row_id}") for row_id in plain["id"][:]]
    return [plain[int(index)] for index in np.argsort(draws, kind="stable")[:POOL_PROTEINS]]


def _owner(row: dict[str, Any]) -> str:
    """What tells a protein from the others of the pool: two chains may share an id."""
    return f"{row['id']}|{row['digest']}"


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


def _record_names(dataset: datasets.Dataset) -> list[str]:
    """A name per row that changes with whatever its losses depend on."""
    masks = ("structure_token_mask", "structure_embedding_mask")
    names = []
    for row in dataset.select_columns(["id", "sequence", "digest", *masks]):
        shown = [bytes(row[mask]).hex() for mask in masks]
        names.append(combined_digest([row["id"], row["sequence"], row["digest"], *shown]))
    return names


def _beside(dataset: datasets.Dataset) -> Path:
    """Where the dataset lies, or Datasets' own cache for one that lies in memory."""
    files = dataset.cache_files
    folder = Path(files[0]["filename"]).parent if files else Path(datasets.config.HF_DATASETS_CACHE)
    return folder / "reference_losses"


def _batches(indices: Iterable[int], lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Consecutive indices whose proteins take at most `max_tokens` tokens when padded; a longer one goes alone."""
    batch: list[int] = []
    longest = 0
    for index in indices:
        if batch and (len(batch) + 1) * max(longest, lengths[index]) > max_tokens:
            yield batch
            batch, longest = [], 0
        batch.append(index)
        longest = max(longest, lengths[index])
    if batch:
        yield batch


def _cut(row: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """A row of the residues from `start` to before `stop`, as if they were the whole protein."""
    if start == 0 and stop >= len(row["sequence"]):
        return row
    embedding = decode_embedding(row)[start:stop]
    return {
        "id": row["id"],
        "digest": row["digest"],
        "sequence": row["sequence"][start:stop],
        **{name: row[name][start:stop] for name in _RESIDUE_COLUMNS},
        "structure_embedding": embedding.tobytes(),
        "structure_embedding_shape": embedding.shape,
    }


def _with_columns(dataset: datasets.Dataset, paths: list[Path], identity: str) -> datasets.Dataset:
    """`dataset` with the two columns, from the records; the rows themselves are neither read nor copied."""

    def rows(paths: list[Path]) -> Iterator[dict[str, Any]]:
        for path in paths:
            try:
                losses = read_arrays(path, ["losses"])["losses"]
            except (FileNotFoundError, DamagedRecordError) as error:
                raise ValueError(
                    f"The reference losses in {path} are missing or damaged ({error}). Delete the file if it is there "
                    "and attach them again; the others are kept."
                ) from error
            yield {"reference_losses": np.ascontiguousarray(losses, dtype=np.float32).tobytes(), "reference": identity}

    columns = datasets.Dataset.from_list(list(rows(paths)), features=_FEATURES)
    dataset = dataset.remove_columns([name for name in _FEATURES if name in dataset.column_names])
    return datasets.concatenate_datasets([dataset, columns], axis=1)
