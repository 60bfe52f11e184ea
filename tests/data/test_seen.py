"""The record of a model's training chains: whatever the ids hold, complete or refused."""

import datasets
import pytest

from structure_aligned.data.relatives import ChainKey, chain_keys, sequence_digest
from structure_aligned.data.seen import RECORD_NAME, read_training_chains, seen_reasons, write_training_chains


STRANGE = ["A", "A_1", "A\t1", "A\n1", "A\r\n1", '"', "'", "\\t", "# 3 chains", "Ä", "\u2028", "蛋白", ""]


@pytest.fixture
def rows():
    return datasets.Dataset.from_list(
        [
            {"id": f"{entry}_{chain}", "entry": entry, "chain": chain, "sequence": f"MKV{'A' * number}"}
            for number, chain in enumerate(STRANGE)
            for entry in ("1abc", f"fold{chain}")
        ]
    )


def test_a_record_reads_as_it_was_written(rows, tmp_path):
    path = write_training_chains(tmp_path / "model", rows)
    assert path == tmp_path / "model" / RECORD_NAME and list(path.parent.iterdir()) == [path]
    found = read_training_chains(path.parent)
    assert found == chain_keys(rows)
    assert found[2] == ChainKey("1abc", "A_1", "1abc_A_1", sequence_digest("MKVA"))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # as git does on Windows
    assert read_training_chains(path.parent) == found
    write_training_chains(path.parent, rows.select([]))
    assert read_training_chains(path.parent) == [] and read_training_chains(tmp_path) is None


def test_a_record_that_is_cut_anywhere_is_refused(rows, tmp_path):
    path = write_training_chains(tmp_path, rows.select(range(4)))
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=f"{RECORD_NAME} (begins with|is incomplete).*Write it again"):
            read_training_chains(tmp_path)
    lines = data.splitlines(keepends=True)
    for damaged in (lines[:1] + lines[2:], [*lines, b"more\n"], [lines[0], b"1abc_A\t0\n", b"# 1 chains\n"]):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(ValueError, match=f"{RECORD_NAME}(, line 2:| is incomplete).*Write it again"):
            read_training_chains(tmp_path)


def test_a_record_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / RECORD_NAME).write_text(f"1abc_A_1\t{sequence_digest('MKV')}\n")
    with pytest.raises(ValueError, match="begins with '1abc_A_1.*an earlier version wrote it.*write_training_chains"):
        read_training_chains(tmp_path)


def test_another_chain_of_a_training_entry_counts_as_seen(rows):
    def reason(entry, chain):
        row = {"id": f"{entry}_{chain}", "entry": entry, "chain": chain, "sequence": "W"}
        return seen_reasons(datasets.Dataset.from_list([row]), known)[0]

    known = chain_keys(rows.filter(lambda row: row["entry"] == "1abc"))
    assert reason("1abc", "A_1") == "trained on it"
    assert reason("1abc", "B_1") == reason("1ABC", "A_1") == "trained on a chain of its entry"
    assert reason("1abc_A", "1") is None  # though its id is that of a training chain
