"""From a FASTA file of any size to a folder of embeddings, by one process or several, killed and resumed or not."""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from datasets.utils import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.ranks import Ranks
from ..evaluation.masked_lm import check_budget
from ..models.trunks import tokenizer_of, trunk_digest, trunk_of
from .embedding_files import FORMATS, EmbeddingShard, write_shard
from .embedding_plan import DUPLICATES, EmbeddingPlan
from .embeddings import POOLINGS, iterate_embeddings, layer_module


logger = logging.get_logger(__name__)

SHARD_RESIDUES = {"mean": 200_000, "residue": 50_000, "both": 50_000}


@dataclass
class EmbeddingReport:
    """
    What [`embed_fasta`] made.

    Args:
        path (`Path`): The folder.
        sequences, residues, files (`int`): All that it holds.
        read_as_x (`int`): Letters that stand for no amino acid.
        renamed (`int`): Ids that came again and were numbered.
        embedded (`int`): Residues embedded by this call, all processes together.
        seconds (`float`): For these, reading the input included.
    """

    path: Path
    sequences: int
    residues: int
    files: int
    read_as_x: int
    renamed: int
    embedded: int
    seconds: float


def embed_fasta(
    model: PreTrainedModel,
    fasta: str | os.PathLike,
    output: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    format: str = "parquet",
    pooling: str = "mean",
    layer: int = -1,
    dtype: str = "float32",
    max_residues: int = 1022,
    max_tokens: int = 4096,
    duplicates: str = "error",
    shard_residues: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    timeout: float = 1800.0,
    poll: float = 1.0,
    progress: bool = True,
) -> EmbeddingReport | None:
    """
    Embeddings of the sequences of a FASTA file, ids and order kept, as one of several processes that share a folder.

    The sequences are dealt out to files by their order and length alone, and only sequences of one file share
    batches: the same files come out of any number of processes, killed and started again or not. (On another device
    or number of threads the same numbers, up to rounding.) [`read_embeddings`] reads them. A process holds two files'
    embeddings; rank 0 also eight bytes for each sequence, by which it finds ids that come twice.

    Args:
        model ([`PreTrainedModel`]): An ESM2 or AMPLIFY, in the precision and on the device to compute with.
        fasta (`str` or `os.PathLike`): Also gzipped; `-` is the standard input, of a single process.
        output (`str` or `os.PathLike`): New or empty, or of the same call before. `manifest.json` there says of what
            input, model and options it is; others are refused.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): The family's by default.
        format (`str`, *optional*, defaults to `"parquet"`): Or `"safetensors"`; see [`write_shard`].
        pooling, layer, dtype, max_residues, max_tokens: As [`embed_sequences`] takes them, with `"mean"` by default.
        duplicates (`str`, *optional*, defaults to `"error"`): Of ids that come again; `"number"` makes them `ID/2`,
            `ID/3` and so on.
        shard_residues (`int`, *optional*): Of a file, unless a single protein has more; 50,000, or 200,000 where only
            means are written. A kill loses what of two files was not written yet.
        rank, world_size (`int`, *optional*, defaults to 0 and 1): Which process this is, of how many.
        timeout (`float`, *optional*, defaults to 1800): Seconds to wait for other ranks that show no progress.
        poll (`float`, *optional*, defaults to 1): Seconds between two looks at what others have finished.
        progress (`bool`, *optional*, defaults to `True`): Whether rank 0 shows a bar of its own residues.

    Returns:
        [`EmbeddingReport`] on rank 0, which waits for the others; `None` elsewhere.

    Raises:
        ValueError: The input, the options or what is in `output` do not allow it; nothing is embedded before all of
            the input has been read once.
        TimeoutError: Other ranks made no progress; says whose files are missing.
    """
    for name, value, known in (
        ("format", format, FORMATS),
        ("pooling", pooling, POOLINGS),
        ("dtype", dtype, ("float32", "float16")),
        ("duplicates", duplicates, DUPLICATES),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}.")
    check_budget(max_residues, max_tokens)
    layer_module(model, layer)
    shard_residues = SHARD_RESIDUES[pooling] if shard_residues is None else shard_residues
    if shard_residues < 1:
        raise ValueError(f"shard_residues is {shard_residues}; expected at least 1.")
    if str(fasta) == "-" and world_size > 1:
        raise ValueError("Several processes cannot share the standard input; give a file.")
    started = time.monotonic()
    tokenizer = tokenizer_of(model.config) if tokenizer is None else tokenizer
    embedding = {"pooling": pooling, "layer": layer, "dtype": dtype}
    embedding |= {"max_residues": max_residues, "max_tokens": max_tokens}
    options = embedding | {"format": format, "duplicates": duplicates, "shard_residues": shard_residues}
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    identity = {
        "weights": trunk_digest(model),
        "computed_in": str(model.dtype).removeprefix("torch."),
        "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
    }
    plan = EmbeddingPlan(Path(output), {"model": identity, "options": options})
    before = plan.check()
    finished = set() if before is None else {path for path in plan.files(before) if path.exists()}
    if rank != 0 and before is not None and len(finished) == len(before["files"]):
        return None  # and leave no sign of life in a folder that rank 0 may have tidied already
    ranks = Ranks(plan.work / "ranks", rank, world_size, timeout, poll)
    ranks.count(now=True)
    if rank == 0:
        manifest = plan.make(fasta, shard_residues, format, duplicates, ranks.count)
        if len(manifest["files"]) < world_size:
            logger.warning(
                f"{len(manifest['files'])} files for {world_size} processes: some have nothing to do. A smaller "
                f"shard_residues (now {shard_residues}) lets all take part."
            )
    else:
        ranks.wait([plan.manifest_path], "plans")
        manifest = plan.check()
    files = plan.files(manifest)
    own = sum(manifest["files"][number]["residues"] for number, _ in ranks.mine(files))
    bar = tqdm(total=own, desc="Embedding", unit="residue", unit_scale=True, disable=not progress or rank != 0)
    # One file is written while the next one's embeddings are computed.
    with bar, ThreadPoolExecutor(1) as writer:
        writing: Future | None = None
        for number, path in ranks.mine(files):
            if not ranks.wait([plan.marker], "plans", path.exists):
                continue  # somebody else had it made meanwhile
            ids, sequences = plan.task(number)
            lengths = [len(sequence) for sequence in sequences]
            shard = EmbeddingShard.empty(ids, lengths, trunk_of(model).config.hidden_size, pooling, dtype)
            starts = shard.offsets
            for index, found in iterate_embeddings(model, sequences, tokenizer, **embedding):
                shard.put(index, starts[index], found)
                bar.update(lengths[index])
                ranks.count()
            if writing is not None:
                writing.result()
            writing = writer.submit(write_shard, path, shard)
        if writing is not None:
            writing.result()
    if rank != 0:
        return None
    ranks.wait(files, "embedding files")
    plan.finish()
    embedded = sum(one["residues"] for one, path in zip(manifest["files"], files) if path not in finished)
    known = manifest["input"]
    return EmbeddingReport(
        Path(output),
        known["sequences"],
        known["residues"],
        len(files),
        known["read_as_x"],
        known["renamed"],
        embedded,
        time.monotonic() - started,
    )
