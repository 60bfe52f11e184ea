import zipfile

import numpy as np
import pytest

from structure_aligned.evaluation.residue_labels import (
    NO_LABEL,
    LabelledSequence,
    fold_class,
    read_residue_labels,
    secondary_structure_labels,
    structure_token_labels,
)
from structure_aligned.structure.secondary import assign_secondary_structure
from structure_aligned.structure.synthetic import synthetic_chain
from structure_aligned.structure.tokens import encode_3di
from tests import tiny


def with_missing(chain, atom, residue):
    chain.coords[residue, atom] = np.nan
    return chain


def test_residues_without_coordinates_have_no_label():
    chain = with_missing(with_missing(synthetic_chain("mixed", 60, seed=1), 3, 10), 1, 20)  # no O; no CA
    secondary, tokens = secondary_structure_labels(chain), structure_token_labels(chain)
    assert np.flatnonzero(secondary == NO_LABEL).tolist() == [10, 20]
    states = assign_secondary_structure(chain.coords, chain.sequence)
    assert all("HEC"[label] == state for label, state in zip(secondary, states) if label != NO_LABEL)
    expected, valid = encode_3di(chain.coords)
    assert {0, 19, 20, 21, len(chain) - 1} <= set(np.flatnonzero(tokens == NO_LABEL))
    np.testing.assert_array_equal(tokens != NO_LABEL, valid)
    np.testing.assert_array_equal(tokens[valid], expected[valid])


def test_fold_classes(monkeypatch):
    assert fold_class(synthetic_chain("helix", 80, seed=0)) == "alpha"
    assert fold_class(tiny.chain(40)) == "few"
    lost = tiny.chain(10)
    lost.coords[:] = np.nan
    assert fold_class(lost) is None
    chain = tiny.chain(100)
    from structure_aligned.evaluation import residue_labels

    for helix, strand, expected in (
        (16, 10, "alpha"),
        (15, 11, "beta"),
        (16, 11, "mixed"),
        (15, 10, "few"),
    ):
        states = "H" * helix + "E" * strand + "C" * (100 - helix - strand)
        monkeypatch.setattr(residue_labels, "assign_secondary_structure", lambda *_, states=states: states)
        assert fold_class(chain) == expected


FILES = {
    "sequences": ">a-A\nMKVL\nAG\n>b-B\nACD\n>c-C\nWY\n>unused\nMM\n",
    "mask": ">a-A\n011111\n>b-B\n101\n>c-C\n11\n",
    "sampled": (
        ">a-A SET=train VALIDATION=False\nHHHCEE\n>b-B SET=train VALIDATION=True\nCCC\n"
        ">c-C SET=test VALIDATION=False\nEC\n"
    ),
}


def write(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (FILES | changes).items():
        (folder / f"{name}.fasta").write_text(text)
    return folder


def test_read_a_labelled_set(tmp_path):
    splits = read_residue_labels(write(tmp_path / "set" / "splits").parent)
    assert {name: [item.id for item in items] for name, items in splits.items()} == {
        "train": ["a-A"],
        "validation": ["b-B"],
        "test": ["c-C"],
    }
    (item,) = splits["train"]
    assert item.sequence == "MKVLAG"
    assert item.labels["secondary_structure"].tolist() == [NO_LABEL, 0, 0, 2, 1, 1]
    assert splits["validation"][0].labels["secondary_structure"].tolist() == [2, NO_LABEL, 2]
    with zipfile.ZipFile(tmp_path / "flip.zip", "w") as archive:
        for name, text in FILES.items():
            archive.writestr(f"splits/{name}.fasta", text)
    for place in (tmp_path / "flip.zip", tmp_path):
        again = read_residue_labels(place)["train"][0]
        assert again.labels["secondary_structure"].tolist() == item.labels["secondary_structure"].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": ">a-A\n01111\n"}, "a-A has 6 residues, 6 labels and 5 mask digits"),
        ({"mask": ">a-A\n01x111\n"}, "the mask of a-A has the characters"),
        ({"sampled": ">d SET=train\nHH\n"}, "d is in sampled.fasta but not in sequences.fasta"),
        ({"sampled": ">a-A\nHHHCEE\n"}, "a-A has no SET="),
        ({"sampled": ">a-A SET=train\nHHHCEE\n>a-A SET=test\nHHHCEE\n"}, "a-A comes twice"),
        ({"mask": ""}, "mask.fasta has no entries"),
    ],
)
def test_bad_files_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_residue_labels(write(tmp_path, **changes))


@pytest.mark.parametrize("kind", ["bomb", "cut", "not a zip", "latin-1", "folder"])
def test_bad_archives_are_refused(tmp_path, kind):
    path = tmp_path / "flip.zip"
    if kind == "folder":
        path.mkdir()
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in FILES.items():
                archive.writestr(f"{name}.fasta", text.encode() + b"\xe9" * (kind == "latin-1"))
            if kind == "bomb":
                with archive.open("more/sampled.fasta", "w") as file:
                    for _ in range(260):
                        file.write(b"A" * 1024**2)
        data = path.read_bytes()
        path.write_bytes({"cut": data[:-30], "not a zip": b"text"}.get(kind, data))
    with pytest.raises(ValueError, match=r"flip.zip cannot be read \(.*\); expected the .zip that FLIP gives out"):
        read_residue_labels(path)


def test_missing_files_are_named(tmp_path):
    write(tmp_path)
    (tmp_path / "mask.fasta").unlink()
    with pytest.raises(FileNotFoundError, match="has no mask.fasta"):
        read_residue_labels(tmp_path)


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match="shape \\(2,\\) for 3 residues"):
        LabelledSequence("a", "MKV", {"secondary_structure": np.zeros(2, dtype=np.int64)})


def test_the_real_set(real_data):
    splits = read_residue_labels(real_data("secondary_structure"))
    assert {name: len(items) for name, items in splits.items()} == {"train": 9712, "validation": 1080, "test": 364}
    resolved = sum(
        int((item.labels["secondary_structure"] != NO_LABEL).sum()) for part in splits.values() for item in part
    )
    assert resolved == 2_658_218
