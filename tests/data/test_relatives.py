"""Cluster files and relations between chains."""

import datasets
import pytest

from structure_aligned.data.relatives import (
    assert_disjoint,
    chain_keys,
    clusters_of,
    entry_key,
    group_rows,
    leave_out_related,
    read_clusters,
)
from tests import tiny


@pytest.fixture
def cluster_file(tmp_path):
    """`cluster_file(text)`: path of a cluster file."""

    def write(text):
        path = tmp_path / "all_cluster.tsv"
        path.write_text(text)
        return path

    return write


def chains(**sequences):
    """Chains whose ids end with a chain of one letter."""
    return datasets.Dataset.from_list([tiny.named(name) | {"sequence": text} for name, text in sequences.items()])


def names(*ids):
    return chain_keys(chains(**dict.fromkeys(ids, "MKV")))


def test_cluster_files(cluster_file):
    path = cluster_file("1abc_A\t1abc_A\n1abc_A\t2xyz_B\n\n3def_A\t3def_A\n1abc_A\t2xyz_B\n")
    assert read_clusters(path) == {"1abc_A": "1abc_A", "2xyz_B": "1abc_A", "3def_A": "3def_A"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a_A\ta_A\na_A b_A\n", "line 2: 'a_A b_A' has 1 columns; expected representative<TAB>member"),
        ("a_A\ta_A\tx\n", "line 1: .* has 3 columns"),
        ("a_A\t\n", "line 1: 'a_A' has 1 columns"),
        ("a_A\ta_A\na_A\tb_A\nc_A\tc_A\nc_A\tb_A\n", "line 4: b_A is in the cluster of c_A and in that of a_A"),
        # Columns swapped
        ("a_A\ta_A\nb_A\ta_A\n", "line 2: a_A is in the cluster of b_A.*are they swapped"),
        ("\n", "is empty"),
    ],
)
def test_malformed_cluster_files(cluster_file, text, message):
    with pytest.raises(ValueError, match=message):
        read_clusters(cluster_file(text))


def test_ids_match_with_the_entry_in_any_case(cluster_file):
    path = cluster_file("1ABC_A\t1ABC_A\n1ABC_A\t2XYZ_b\n3DEF_a\t3DEF_a\n")
    assert clusters_of(names("1abc_A", "2xyz_b", "3def_a", "2XYZ_b"), path) == ["1ABC_A", "1ABC_A", "3DEF_a", "1ABC_A"]
    # Chain ids are not the same in another case
    with pytest.raises(ValueError, match="1 of 2 chains are in no cluster of all_cluster.tsv: 2xyz_B. Its.*1ABC_A"):
        clusters_of(names("1abc_A", "2xyz_B"), path)
    assert clusters_of(names("1abc_A", "2xyz_B"), path, missing="own") == ["1ABC_A", None]
    with pytest.raises(ValueError, match="missing_clusters is 'skip'"):
        clusters_of(names("1abc_A"), path, missing="skip")
    both = {"Fold_A": "Fold_A", "fold_A": "x_A", "x_A": "x_A"}
    assert clusters_of(names("Fold_A", "fold_A"), both) == ["Fold_A", "x_A"]
    with pytest.raises(ValueError, match=r"FOLD_A could be any of several members.*\(Fold_A, x_A\)"):
        clusters_of(names("FOLD_A"), both)


def test_names_of_a_cluster_file_are_never_taken_apart():
    """Chain ids and entries may hold `_`; only a chain that has the whole name has its cluster."""
    rows = datasets.Dataset.from_list(
        [
            {"id": f"{entry}_{chain}", "entry": entry, "chain": chain, "sequence": "MKV"}
            for entry, chain in (("1abc", "A_1"), ("1ABC_A", "1"), ("2xyz", "b_B"))
        ]
    )
    first, second, third = chain_keys(rows)
    assert clusters_of([first, third], {"1ABC_A_1": "x", "2XYZ_b_B": "y"}) == ["x", "y"]
    with pytest.raises(ValueError, match="1 of 1 chains are in no cluster"):
        clusters_of([third], {"2XYZ_B_B": "y"})
    message = "1ABC_A_1 of those given could be chain 'A_1' of the entry '1abc' or chain '1' of the entry '1ABC_A'"
    with pytest.raises(ValueError, match=message):
        clusters_of([first, second], {"1ABC_A_1": "x"})
    with pytest.raises(ValueError, match="1ABC_A_1 of those given could be chain '1' of the entry '1ABC_A' or"):
        leave_out_related(rows.select([1]), rows.select([0]), {"1ABC_A_1": "x"})


def test_entries():
    assert entry_key("1ABC") == entry_key("1abc") == "1abc"
    assert entry_key("my_fold_7") == "my_fold_7"
    fragments = ("AF-Q8WZ42-F1", "AF-Q8WZ42-F12-model_v4", "AF-Q8WZ42-2-F1")
    assert {entry_key(name) for name in fragments} == {"af-q8wz42"}
    assert entry_key("AF-P00520-F1") != entry_key("AF-P00521-F1")


@pytest.mark.parametrize("chain", ["A_1", "A\t1", "A\n1", '"', "Ä 1"])
def test_chains_of_an_entry_are_related_whatever_their_ids_hold(chain):
    def row(entry, chain, sequence):
        return {"id": f"{entry}_{chain}", "entry": entry, "chain": chain, "sequence": sequence}

    one, other = (datasets.Dataset.from_list([row("1abc", name, name)]) for name in (chain, f"{chain}_B"))
    with pytest.raises(ValueError, match="in 'train' and (.|\n)* in 'test' have the same entry"):
        assert_disjoint({"train": one, "test": other})
    assert leave_out_related(one, other)[1] == [
        {"source": f"1abc_{chain}", "reason": "entry of a reference chain: 1abc"}
    ]
    # Equal ids, but neither entry nor chain is the same.
    others = datasets.Dataset.from_list([row(f"1abc_{chain}", "B", "MKV")])
    assert others["id"] == other["id"] and len(leave_out_related(other, others)[0]) == 1
    assert_disjoint({"train": others, "test": other})


def test_rows_without_an_entry_are_refused():
    rows = datasets.Dataset.from_list([tiny.named("1abc_A") | {"entry": None, "sequence": "MKV"}])
    with pytest.raises(ValueError, match="a row without an id, entry or chain"):
        chain_keys(rows)
    with pytest.raises(ValueError, match="no column 'entry'.*has to be built again"):
        assert_disjoint({"train": rows.remove_columns("entry")})


def test_groups_are_linked_through_others():
    numbers = group_rows(["s", "t", "t", "u", "v"], ["c", "c", None, None, "d"]).tolist()
    assert numbers[0] == numbers[1] == numbers[2] and len({numbers[0], numbers[3], numbers[4]}) == 3
    assert len(set(group_rows([None, None, "a"]).tolist())) == 3
    assert group_rows([]).tolist() == []


REFERENCE = {"1abc_A": "MKV", "2xyz_A": "GGG"}
OTHERS = {
    "1abc_A": "MKV",  # the chain itself
    "1ABC_B": "WWW",  # its entry
    "5new_A": "GGG",  # its sequence
    "6new_A": "MKI",  # its cluster
    "7new_A": "PPP",
}
CLUSTERS = {"6new_A": "1abc_A", "7new_A": "7new_A", "5new_A": "5new_A", "1abc_A": "1abc_A", "2xyz_A": "2xyz_A"}
CLUSTERS["1ABC_B"] = "1ABC_B"


@pytest.mark.parametrize("keys", [False, True])
def test_relatives_of_a_reference_are_left_out(keys):
    reference = chain_keys(chains(**REFERENCE)) if keys else chains(**REFERENCE)
    kept, dropped = leave_out_related(chains(**OTHERS), reference, CLUSTERS)
    assert kept["id"][:] == ["7new_A"]
    reasons = {item["source"]: item["reason"].split(":")[0] for item in dropped}
    expected = dict(zip(OTHERS, ("reference chain", "entry of a reference chain", "sequence of a reference chain")))
    expected["6new_A"] = "cluster of a reference chain"
    assert reasons == expected
    kept, _ = leave_out_related(chains(**OTHERS), reference)
    assert kept["id"][:] == ["6new_A", "7new_A"]
    with pytest.raises(ValueError, match="given as '1abc_A'; expected what chain_keys"):
        leave_out_related(chains(**OTHERS), REFERENCE)
    with pytest.raises(ValueError, match="2xyz_A"):
        leave_out_related(chains(**OTHERS), reference, {name: name for name in OTHERS})


@pytest.mark.parametrize(
    ("chain_id", "kind"), [("1abc_A", "id"), ("1ABC_B", "entry"), ("5new_A", "sequence"), ("6new_A", "cluster")]
)
def test_splits_that_are_not_disjoint_are_noticed(chain_id, kind):
    splits = {"reference": chains(**REFERENCE), "test": chains(**{"7new_A": "PPP", chain_id: OTHERS[chain_id]})}
    with pytest.raises(ValueError, match=f"in 'reference' and {chain_id} in 'test' have the same {kind}"):
        assert_disjoint(splits, CLUSTERS)
    assert_disjoint(splits | {"test": chains(**{"7new_A": "PPP"})}, CLUSTERS)
