import pytest
import torch

from structure_aligned.objectives.selection import excess_losses, num_selected, select_residues


def test_keeps_the_largest_signed_excess():
    current = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])
    reference = torch.tensor([5.0, 3.0, 0.0, 1.5, 1.0])
    # excess: 0, -2, 3, 0.5, 3
    assert select_residues(current, reference, ratio=0.4).tolist() == [False, False, True, False, True]
    assert select_residues(current, reference, ratio=0.4, keep="smallest").tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert select_residues(current, reference, ratio=0.4, keep="all").all()


def test_without_reference_the_own_loss_is_the_excess():
    assert select_residues(torch.tensor([1.0, 3.0, 2.0]), ratio=0.34).tolist() == [False, True, False]


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 99, 1000])
@pytest.mark.parametrize("ratio", [0.01, 0.29, 0.5, 0.8, 1.0])
def test_keeps_exactly_the_stated_number(count, ratio):
    kept = select_residues(torch.rand(count, generator=torch.Generator().manual_seed(count)), ratio=ratio)
    expected = max(1, int(ratio * count)) if count else 0
    assert kept.dtype == torch.bool
    assert kept.sum().item() == expected == num_selected(count, ratio)


def test_ties_are_kept_in_order_of_position():
    for keep in ("largest", "smallest"):
        assert select_residues(torch.ones(1000), ratio=0.3, keep=keep).nonzero()[:, 0].tolist() == list(range(300))


def test_carries_no_gradient():
    current = torch.rand(10, requires_grad=True)
    assert not select_residues(current, ratio=0.5).requires_grad


def test_residues_without_a_reference_can_be_ranked_by_their_own_loss():
    current, reference = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.5, float("nan"), 2.0])
    assert excess_losses(current, reference, "own_loss").tolist() == [0.5, 1.0, 0.0]
    kept = select_residues(current, reference, ratio=0.4, missing_reference="own_loss")
    assert kept.tolist() == [False, True, False]
    assert excess_losses(current) is current


def test_of_one_process_all_are_its_own():
    current = torch.rand(50, generator=torch.Generator().manual_seed(0))
    for keep in ("largest", "smallest", "all"):
        local = select_residues(current, ratio=0.3, keep=keep)
        assert torch.equal(select_residues(current, ratio=0.3, keep=keep, scope="global"), local)


def test_refuses_bad_input():
    with pytest.raises(ValueError, match="'batch', 'global'"):
        select_residues(torch.ones(3), scope="node")
    with pytest.raises(ValueError, match="'raise', 'own_loss'"):
        select_residues(torch.ones(3), torch.ones(3), missing_reference="zero")
    with pytest.raises(ValueError, match="0 < ratio <= 1"):
        select_residues(torch.ones(3), ratio=0.0)
    with pytest.raises(ValueError, match="'largest', 'smallest', 'all'"):
        select_residues(torch.ones(3), keep="hardest")
    with pytest.raises(ValueError, match="same residues"):
        select_residues(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="1 of 3 reference losses are NaN"):
        select_residues(torch.ones(3), torch.tensor([1.0, float("nan"), 1.0]))
