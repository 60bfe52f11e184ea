"""What selection keeps, counted over an epoch: against a direct computation, and as table, summary and picture."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments
from structure_aligned.training.inspection import (
    SelectionRecord,
    selection_frequency,
    selection_summary,
    selection_table,
)
from structure_aligned.training.running import SELECTED_LOSSES
from structure_aligned.training.selection_plot import plot_selection
from structure_aligned.training.trainer import StructureAlignmentTrainer
from tests import tiny


COUNT, BATCH = 9, 4


def make_trainer(tmp_path, data, family="esm", reference=None, max_length=2048, **options):
    arguments = StructureAlignmentTrainingArguments(
        **{"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "disable_tqdm": True},
        **{"selection_ratio": 0.6, "per_device_train_batch_size": BATCH, "reference_allow_seen": True} | options,
    )
    family = tiny.FAMILIES[family]
    tokenizer = family.tokenizer()
    return StructureAlignmentTrainer(
        family.model(structure_alignment={"structure_dim": tiny.STRUCTURE_DIM, "pgnn": "tiny"}),
        arguments,
        DataCollatorForStructureAlignment(tokenizer, max_length=max_length),
        reference_model=reference,
        train_dataset=data,
        processing_class=tokenizer,
    )


def reference_model(family="esm"):
    return tiny.FAMILIES[family].model(
        seed=1, structure_alignment={"structure_dim": tiny.STRUCTURE_DIM, "pgnn": "tiny"}
    )


def direct(trainer, data, epochs):
    """The same numbers residue by residue, from the Trainer's own loader and collator: `{id: {loss: (3, L)}}`."""
    ids = {tuple(row["sequence"]): row["id"] for row in data}
    tables = {row["id"]: {name: np.zeros((3, row["length"])) for name in SELECTED_LOSSES} for row in data}
    for epoch in range(epochs):
        trainer.data_collator.set_epoch(epoch)
        loader = trainer.get_train_dataloader()
        loader.set_epoch(epoch)
        for batch in loader:
            with torch.no_grad():
                losses = trainer._residue_losses(trainer._forward(trainer.model, batch), batch)
                kept, excess = trainer.select(losses, batch)
            letters = torch.where(batch["labels"] != -100, batch["labels"], batch["input_ids"])
            for name in SELECTED_LOSSES:
                mask = batch["structure_labels"] != -100 if name == "token" else batch["residue_mask"]
                for number, (row, column) in enumerate(mask.nonzero().tolist()):
                    length = int(batch["attention_mask"][row].sum()) - 2
                    sequence = trainer.processing_class.convert_ids_to_tokens(letters[row, 1 : length + 1].tolist())
                    table = tables[ids[tuple(sequence)]][name]
                    table[0, column - 1] += 1
                    table[1, column - 1] += kept[name][number].item() if kept else 1
                    table[2, column - 1] += excess[name][number].item() if excess else np.nan
    return tables


@pytest.mark.parametrize("family", ["esm", "AMPLIFY"])
@pytest.mark.parametrize("with_reference", [False, True])
def test_counts_are_those_of_the_trainers_own_selection(tmp_path, family, with_reference):
    data = tiny.dataset(COUNT)
    trainer = make_trainer(tmp_path, data, family, reference_model(family) if with_reference else None)
    records = selection_frequency(trainer, data, epochs=2)
    assert list(records) == data["id"][:]
    for name, tables in direct(trainer, data, epochs=2).items():
        record = records[name]
        for loss, (available, kept, excess) in tables.items():
            assert record.available[loss].tolist() == available.tolist() and available.max() == 2
            assert record.kept[loss].tolist() == kept.tolist()
            known = available > 0
            expected = excess[known] / available[known]
            # An excess is a difference of two losses of up to 20, however small it is itself.
            np.testing.assert_allclose(record.excess[loss][known], expected, rtol=0, atol=20 * 16 * 1.2e-7)
            assert np.isnan(record.excess[loss][~known]).all() and np.isnan(record.frequency(loss)[~known]).all()
    kept, available = (
        sum(getattr(record, kind)["token"].sum() for record in records.values()) for kind in ("kept", "available")
    )
    assert 0.5 < kept / available <= 0.6


def test_chosen_chains_are_ranked_in_their_whole_batches(tmp_path):
    data = tiny.dataset(COUNT)
    trainer = make_trainer(tmp_path, data)
    whole = selection_frequency(trainer, data)
    chosen = selection_frequency(trainer, data, ids=["row5_A", "row2_A", "row5_A"])
    assert list(chosen) == ["row5_A", "row2_A"]
    for name, record in chosen.items():
        for loss in SELECTED_LOSSES:
            assert record.kept[loss].tolist() == whole[name].kept[loss].tolist()
    row = data[5]
    assert chosen["row5_A"].sequence == row["sequence"] and not chosen["row5_A"].predicted
    assert chosen["row5_A"].structure_tokens[0] == chosen["row5_A"].structure_tokens[-1] == "-"
    assert "-" not in chosen["row5_A"].structure_tokens[1:-1]
    # Without a CA the residue has no embedding; the ends have no token.
    assert chosen["row5_A"].available["seq_to_struct"].tolist() == [1, 0] + [1] * (row["length"] - 2)
    assert chosen["row5_A"].available["token"].tolist() == [0] + [1] * (row["length"] - 2) + [0]


@pytest.mark.parametrize("options", [{"selection_ratio": 1.0}, {"selection_keep": "all"}])
def test_everything_is_kept_where_nothing_is_selected(tmp_path, options):
    data = tiny.dataset(COUNT)
    for record in selection_frequency(make_trainer(tmp_path, data, **options), data).values():
        for loss in SELECTED_LOSSES:
            assert record.kept[loss].tolist() == record.available[loss].tolist() and record.kept[loss].any()
            assert np.isnan(record.excess[loss]).all()
    assert plot_selection(record, tmp_path / "all.png").stat().st_size > 10_000


def test_the_trainer_is_left_as_it_was(tmp_path):
    data = tiny.dataset(COUNT)
    trainer = make_trainer(tmp_path, data)
    trainer.model.train()
    trainer.data_collator.set_epoch(7)
    weights = copy.deepcopy(trainer.model.state_dict())
    before = trainer.data_collator, trainer.train_dataset, trainer.state.global_step, trainer.data_collator([data[0]])
    random = torch.get_rng_state()
    first = selection_frequency(trainer, tiny.dataset(5))
    assert torch.equal(torch.get_rng_state(), random)
    assert trainer.model.training and all(parameter.grad is None for parameter in trainer.model.parameters())
    assert all(torch.equal(weights[name], values) for name, values in trainer.model.state_dict().items())
    assert (trainer.data_collator, trainer.train_dataset, trainer.state.global_step) == before[:3]
    assert torch.equal(trainer.data_collator([data[0]])["input_ids"], before[3]["input_ids"])
    assert not any(trainer._running.fetch(trainer.accelerator).values())
    second = selection_frequency(trainer, tiny.dataset(5))
    assert all((first[name].kept["token"] == second[name].kept["token"]).all() for name in first)


def test_refusals(tmp_path):
    data = tiny.dataset(COUNT)
    trainer = make_trainer(tmp_path, data, max_length=20)
    with pytest.raises(ValueError, match=r"longer than the collator's 18 .* Raise its max_length"):
        selection_frequency(trainer, data)
    with pytest.raises(ValueError, match=r"no chains \['1abc_A'\]; its ids look like 'row0_A'"):
        selection_frequency(trainer, data, ids=["1abc_A"])
    with pytest.raises(ValueError, match="epochs is 0"):
        selection_frequency(trainer, data, epochs=0)
    with pytest.raises(ValueError, match="10 rows have 9 ids"):
        selection_frequency(trainer, data.select([*range(COUNT), 0]))


def record(length=60, **fields):
    rng = np.random.default_rng(length)
    available = {name: np.full(length, 2) for name in SELECTED_LOSSES}
    available["token"][[0, -1]] = 0
    kept = {name: np.minimum(rng.integers(0, 3, length), available[name]) for name in SELECTED_LOSSES}
    excess = {name: np.where(available[name] > 0, rng.normal(size=length), np.nan) for name in SELECTED_LOSSES}
    tokens = "-" + "".join(rng.choice(list("ACDVVVV"), length - 2)) + "-"
    values = {"b_factors": kept["token"] * 10.0 + 5, "structure_tokens": tokens}
    return SelectionRecord("one_A", "A" * length, available, kept, excess, **values | fields)


def test_table():
    lines = selection_table(record(5, secondary="CHHEC")).splitlines()
    assert len(lines) == 6 and lines[0].split("\t")[:5] == ["position", "residue", "3di", "secondary", "b_factor"]
    first = dict(zip(lines[0].split("\t"), lines[1].split("\t")))
    assert first["position"] == "1" and first["3di"] == "-" and first["secondary"] == "C"
    assert (first["token_available"], first["token_kept"], first["token_excess"]) == ("0", "0", "")
    assert len({line.count("\t") for line in lines}) == 1
    assert "plddt" in selection_table(record(5, predicted=True)).splitlines()[0]


def test_summary():
    one = record(secondary="C" * 20 + "H" * 40)
    lines = selection_summary([one, record(30, predicted=True)]).splitlines()
    assert lines[0].endswith("| all | H | E | C | ρ with B-factor | ρ with pLDDT |")
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[0] == "token" and cells[1] == "86" and cells[4] == "–"
    assert cells[3] == f"{one.kept['token'][20:].sum() / one.available['token'][20:].sum():.3f}"
    assert cells[6] == "+1.000"  # the B-factors here rise with how often the token is kept
    assert selection_summary([record(30)]).splitlines()[0].endswith("| residues | all | ρ with B-factor |")
    constant = record(30, b_factors=np.full(30, 20.0))
    assert selection_summary([constant]).splitlines()[2].endswith("| – |")


@pytest.mark.parametrize("length", [3, 60, pytest.param(900, marks=pytest.mark.slow)])
@pytest.mark.parametrize("known", [False, True])
def test_plot(tmp_path, length, known):
    from matplotlib.image import imread

    drawn = record(length, secondary=("CHHHHEEEEC" * length)[:length] if known else None, predicted=known)
    path = plot_selection(drawn, tmp_path / "one.png")
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 300 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert 0.02 < (pixels.min(axis=-1) < 0.9).mean() < 0.9


def test_records_and_plots_say_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="one_A: secondary has 3 entries for 60 residues"):
        replace(record(), secondary="HHH")
    nothing = {name: np.zeros(0) for name in SELECTED_LOSSES}
    with pytest.raises(ValueError, match="no residues"):
        plot_selection(SelectionRecord("none_A", "", nothing, nothing, nothing, np.zeros(0), ""), tmp_path / "x.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install"):
        plot_selection(record(), tmp_path / "x.png")
