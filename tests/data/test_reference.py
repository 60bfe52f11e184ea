"""Reference losses attached to a dataset: equal to a plain computation, cached, shared over processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from structure_aligned.data import reference as module
from structure_aligned.data.builder import StructureDatasetBuilder
from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.data.features import REFERENCE_COLUMNS, decode_reference_losses, pgnn_identity
from structure_aligned.data.reference import attach_reference_losses
from structure_aligned.data.relatives import ChainKey, sequence_digest
from structure_aligned.data.seen import write_training_chains
from structure_aligned.models.alignment import compute_residue_losses
from structure_aligned.objectives.losses import IGNORE_INDEX
from structure_aligned.objectives.reference import rebuild_contrastive_losses
from structure_aligned.structure.synthetic import write_synthetic_folds
from tests import tiny
from tests.closeness import assert_same_but_rounding


ROOT = Path(__file__).parents[2]


def judge(family="esm", seed=5, pgnn="tiny", **changes):
    settings = {"structure_dim": tiny.STRUCTURE_DIM, "pgnn": pgnn}
    model = tiny.FAMILIES[family].model(seed, structure_alignment=settings, **changes)
    model.training_chains = []
    return model


def losses_of(rows):
    return [decode_reference_losses(row) for row in rows]


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_columns_are_aligned_with_the_residues(tmp_path, family):
    rows = tiny.dataset(6)
    model = judge(family)
    attached = attach_reference_losses(rows, model, cache_dir=tmp_path, pool_size=50)
    assert attached["sequence"][:] == rows["sequence"][:]
    assert len(set(attached["reference"])) == 1 and type(model).__name__ in attached["reference"][0]
    for row, losses in zip(attached, losses_of(attached)):
        assert losses.shape == (row["length"], len(REFERENCE_COLUMNS)) and losses.dtype == np.float32
        assert np.array_equal(np.isfinite(losses[:, 0]), row["structure_token_mask"])
        for column in losses[:, 1:].T:
            assert np.array_equal(np.isfinite(column), row["structure_embedding_mask"])
    batch = DataCollatorForStructureAlignment(tiny.FAMILIES[family].tokenizer())(list(attached)[:3])
    stored = batch["reference_losses"]
    assert torch.equal(stored[..., 0].isfinite(), batch["structure_labels"] != IGNORE_INDEX)
    assert torch.equal(stored[..., 1].isfinite(), batch["residue_mask"])


def test_one_masking_and_the_whole_dataset_as_pool_give_the_losses_of_the_whole_batch(tmp_path):
    """With every foreign residue in the pool, nothing is estimated: the rebuilt losses are those of one batch."""
    rows, model = tiny.dataset(5), judge()
    attached = attach_reference_losses(rows, model, cache_dir=tmp_path, num_maskings=1, pool_size=10_000)
    collator = DataCollatorForStructureAlignment(tiny.FAMILIES["esm"].tokenizer())
    batch = collator(list(attached))
    with torch.no_grad():
        outputs = model(
            batch["input_ids"], batch["attention_mask"], structure_embeddings=batch["structure_embeddings"]
        )
    expected = compute_residue_losses(outputs, None, batch["structure_labels"], batch["residue_mask"])
    aligned = batch["residue_mask"]
    own = aligned.sum(dim=1, keepdim=True).expand_as(aligned)[aligned]
    stored = batch["reference_losses"]
    found = rebuild_contrastive_losses(stored[..., 1:][aligned].double(), own, int(aligned.sum()))
    assert_same_but_rounding(found[0].float(), expected.seq_to_struct, 10)
    assert_same_but_rounding(found[1].float(), expected.struct_to_seq, 10)
    token = stored[..., 0][batch["structure_labels"] != IGNORE_INDEX]
    assert_same_but_rounding(token, expected.token, 10)


def test_numbers_are_means_over_maskings(tmp_path):
    rows, model = tiny.dataset(4), judge()
    collator = DataCollatorForStructureAlignment(tiny.FAMILIES["esm"].tokenizer())
    sums = 0.0
    for masking in range(3):
        collator.set_epoch(masking)
        batch = collator(list(rows))
        with torch.no_grad():
            logits = model(batch["input_ids"], batch["attention_mask"]).structure_logits
        labelled = batch["structure_labels"] != IGNORE_INDEX
        sums = sums + torch.nn.functional.cross_entropy(
            logits[labelled], batch["structure_labels"][labelled], reduction="none"
        )
    attached = attach_reference_losses(rows, model, cache_dir=tmp_path, num_maskings=3)
    found = np.concatenate([losses[np.isfinite(losses[:, 0]), 0] for losses in losses_of(attached)])
    assert_same_but_rounding(found, sums / 3, 16)


def test_results_do_not_depend_on_batches_order_or_other_rows(tmp_path):
    rows, model = tiny.dataset(6), judge()
    pool = rows.select(range(4))
    whole = attach_reference_losses(rows, model, cache_dir=tmp_path / "a", pool=pool)
    pieces = attach_reference_losses(rows, model, cache_dir=tmp_path / "b", pool=pool, max_batch_tokens=1)
    turned = rows.select([5, 2, 0])
    some = attach_reference_losses(turned, model, cache_dir=tmp_path / "c", pool=pool.select([3, 1, 0, 2]))
    for first, second in zip(losses_of(whole), losses_of(pieces)):
        assert_same_but_rounding(first, second, 16)
    for index, losses in zip([5, 2, 0], losses_of(some)):
        assert_same_but_rounding(losses, losses_of(whole)[index], 16)


def test_long_proteins_are_computed_in_windows(tmp_path):
    rows, model = tiny.dataset(3, length=50), judge()
    attached = attach_reference_losses(rows, model, cache_dir=tmp_path, max_length=22)
    for row, losses in zip(attached, losses_of(attached)):
        assert np.array_equal(np.isfinite(losses[:, 0]), row["structure_token_mask"])
        assert np.array_equal(np.isfinite(losses[:, 1]), row["structure_embedding_mask"])


def test_what_was_computed_is_not_computed_again(tmp_path, monkeypatch):
    rows, model = tiny.dataset(6), judge()
    calls = []
    original = module._Judge.__call__
    monkeypatch.setattr(module._Judge, "__call__", lambda self, rows: calls.append(len(rows)) or original(self, rows))
    pool = rows.select(range(3))
    options = {"cache_dir": tmp_path, "pool": pool, "pool_size": 40}
    expected = attach_reference_losses(rows.select(range(4)), model, **options)
    assert sum(calls) == 4
    again = attach_reference_losses(rows, model, **options)
    assert sum(calls) == 6
    assert losses_of(again)[:4][0].tobytes() == losses_of(expected)[0].tobytes()
    attach_reference_losses(again, model, **options)  # columns are replaced, not doubled
    assert sum(calls) == 6
    attach_reference_losses(rows, judge(seed=6), **options)
    assert sum(calls) == 12
    attach_reference_losses(rows, model, num_maskings=2, **options)
    assert sum(calls) == 18
    masks = [list(mask) for mask in rows["structure_token_mask"]]
    masks[2][4] = False
    relabelled = rows.remove_columns("structure_token_mask").add_column("structure_token_mask", masks)
    attach_reference_losses(relabelled.cast(rows.select_columns(relabelled.column_names).features), model, **options)
    assert sum(calls) == 19


def test_two_processes_share_the_work(tmp_path):
    """Each computes its half, both return the whole; equal to one process."""
    script = tmp_path / "job.py"
    script.write_text(
        "import json, sys, torch\n"
        "from accelerate import PartialState\n"
        "from structure_aligned.data import reference as module\n"
        "from tests import tiny\n"
        "from tests.data.test_reference import judge, losses_of\n"
        "torch.set_num_threads(1)\n"
        "state = PartialState(cpu=True)\n"
        "count = []\n"
        "original = module._Judge.__call__\n"
        "module._Judge.__call__ = lambda self, rows: count.append(len(rows)) or original(self, rows)\n"
        "rows = module.attach_reference_losses(tiny.dataset(7), judge(), cache_dir=sys.argv[1] + '/cache')\n"
        "found = [float(x.astype('float64')[2].sum()) for x in losses_of(rows)]\n"
        "open(f'{sys.argv[1]}/{state.process_index}.json', 'w').write(json.dumps([sum(count), found]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert sorted(count for count, _ in reports) == [3, 4]
    alone = attach_reference_losses(tiny.dataset(7), judge(), cache_dir=tmp_path / "alone")
    expected = [losses.astype(np.float64)[2].sum() for losses in losses_of(alone)]
    for _, found in reports:
        # Sums of six float32 losses each.
        np.testing.assert_allclose(found, expected, rtol=16 * np.finfo(np.float32).eps, atol=0)


def test_a_model_that_has_seen_the_chains_is_refused(tmp_path):
    rows = tiny.dataset(4)
    model = judge()
    other = ChainKey("other", "A", "other_A", "0")
    for chains, message in (
        (ChainKey("row2", "A", "row2_A", "0"), "row2_A .trained on it"),
        (ChainKey("ROW1", "B", "ROW1_B", "0"), "row1_A .trained on a chain of its entry"),
        (other._replace(sequence=sequence_digest(rows[3]["sequence"])), "row3_A .trained on its sequence"),
    ):
        model.training_chains = [chains]
        with pytest.raises(ValueError, match=f"has seen 1 of 4 chains.*{message}"):
            attach_reference_losses(rows, model, cache_dir=tmp_path)
    model.training_chains = [other]
    clusters = {"row0_A": "c1", "other_A": "c1"}
    with pytest.raises(ValueError, match="row0_A .trained on a chain of its cluster"):
        attach_reference_losses(rows, model, cache_dir=tmp_path, clusters=clusters)
    attach_reference_losses(rows, model, cache_dir=tmp_path)
    model.training_chains = {"other_A": "0"}
    with pytest.raises(ValueError, match=r"given as 'other_A'; expected what chain_keys\(dataset\)"):
        attach_reference_losses(rows, model, cache_dir=tmp_path)
    model.training_chains = None
    with pytest.raises(ValueError, match="no record of its training chains"):
        attach_reference_losses(rows, model, cache_dir=tmp_path)
    attach_reference_losses(rows, model, cache_dir=tmp_path, allow_seen=True)
    model.save_pretrained(tmp_path / "model")
    write_training_chains(tmp_path / "model", rows)
    with pytest.raises(ValueError, match="has seen 4 of 4"):
        attach_reference_losses(rows, type(model).from_pretrained(tmp_path / "model"), cache_dir=tmp_path)


def test_what_does_not_fit_is_refused(tmp_path):
    rows = tiny.dataset(3)
    with pytest.raises(ValueError, match="pGNN tiny but the reference model was trained with other"):
        attach_reference_losses(rows, judge(pgnn="other"), cache_dir=tmp_path)
    with pytest.raises(ValueError, match="no alignment heads"):
        attach_reference_losses(rows, tiny.FAMILIES["esm"].plain(tiny.esm_config()), cache_dir=tmp_path)
    with pytest.raises(ValueError, match="at least 1"):
        attach_reference_losses(rows, judge(), cache_dir=tmp_path, num_maskings=0)
    with pytest.raises(ValueError, match="needs at least two proteins"):
        attach_reference_losses(rows.select([0]), judge(), cache_dir=tmp_path)


def test_a_damaged_record_is_named(tmp_path):
    rows, model = tiny.dataset(3), judge()
    attach_reference_losses(rows, model, cache_dir=tmp_path)
    record = next(tmp_path.rglob("*.safetensors"))
    record.write_bytes(b"torn")
    with pytest.raises(ValueError, match=record.name):
        attach_reference_losses(rows, model, cache_dir=tmp_path)


def test_results_lie_beside_the_dataset_by_default(tmp_path):
    tiny.dataset(3).save_to_disk(tmp_path / "data")
    attach_reference_losses(datasets.load_from_disk(tmp_path / "data"), judge())
    assert len(list((tmp_path / "data" / "reference_losses").rglob("*.safetensors"))) == 3


@pytest.mark.parametrize("saved", [True, False])
def test_the_builder_attaches_them(tmp_path, saved):
    write_synthetic_folds(tmp_path / "folds", 4, max_length=40)
    pgnn = tiny.WindowGNN()
    model = judge(pgnn=pgnn_identity(pgnn))
    if saved:
        model.save_pretrained(tmp_path / "model")
        write_training_chains(tmp_path / "model", tiny.dataset(2))
    reference = tmp_path / "model" if saved else model
    options = {"reference_model": reference, "reference_options": {"num_maskings": 2}}
    builder = StructureDatasetBuilder(tmp_path / "folds", pgnn, tmp_path / "cache", **options)
    builder.download_and_prepare()
    rows = builder.as_dataset("train")
    expected = attach_reference_losses(
        StructureDatasetBuilder(tmp_path / "folds", pgnn, tmp_path / "cache").as_dataset("train"),
        model,
        num_maskings=2,
        cache_dir=tmp_path / "again",
    )
    assert rows["reference_losses"][:] == expected["reference_losses"][:]
    assert builder.as_dataset()["train"]["reference"][:] == rows["reference"][:]


def test_parts_make_the_losses_of_a_batch_of_one():
    parts = torch.tensor([[2.0, 3.0, 0.5, 2.5, 0.1]])
    to_structure, to_sequence = rebuild_contrastive_losses(parts, torch.tensor([7]), 7)
    assert (to_structure.item(), to_sequence.item()) == (1.0, 0.5)
    to_structure, _ = rebuild_contrastive_losses(parts, torch.tensor([7]), 10)
    assert to_structure.item() == pytest.approx(math.log(math.exp(3) + 3 * math.exp(0.5)) - 2)
