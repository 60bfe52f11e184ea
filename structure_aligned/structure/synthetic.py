"""
Synthetic ideal folds: the data of the quickstart and of smoke tests, made in milliseconds without any network.

**These are not real proteins.** Helices and strands of ideal geometry are joined by turns that pack them against each
other, and the letters are then sampled from what each residue's conformation and burial suggest. A language model can
learn the structure from such sequences, which shows that a training run works; a model trained on them knows nothing
about nature.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np

from .backbone import CA_POINT, SIDE_CHAIN_POINT, place_atoms, place_point, side_chain_points, walk, walk_from_origin
from .chain import BACKBONE_ATOMS, ProteinChain
from .io import write_mmcif


KINDS = ("helix", "strand", "mixed")
"""Kinds of folds, by their secondary-structure elements."""

MIN_LENGTH, MAX_LENGTH = 24, 300
"""A helix and a strand with their loop fit in the shortest; the longest still folds without running into itself."""

SEED_STRIDE = 100_000
"""Sets of chains made from different seeds share no entry id up to this many chains."""

# Conformations: alpha helix and strand in the elements; in loops right-handed turn, extended, polyproline II and
# left-handed turn. phi and psi in degrees, in this order.
_STATES = "HERBPL"
_HELIX, _STRAND, _EXTENDED, _FIRST_LOOP_STATE = 0, 1, 3, 2
_IDEAL = np.array([[-57, -47], [-120, 130], [-70, -30], [-110, 125], [-68, 147], [62, 30]], dtype=np.float64)
_TORSION_NOISE = (5.0, 2.0)  # standard deviation in elements and in turns
_ELEMENT_LENGTHS = ((9, 18), (5, 9))  # helix, strand
_LOOP_LENGTHS = (3, 6)
_TAIL = 2

# Search: random loops tried per kind of turn, the best kept, how far they lie from the ideal torsions (degrees).
_TURN_TRIALS, _TURNS, _TURN_SPREAD, _TURN_ARMS = 3000, 12, 20.0, (13, 7)
_CANDIDATES, _CHECKED, _FAILURES, _RESTARTS = 48, 24, 20, 10

# Closest approaches in Å: any two atoms of residues that are not neighbours as a sum of radii (the outer limits of
# Ramachandran & Sasisekharan, 1968); CA to CA; and side-chain centre to side-chain centre.
_RADII = np.array([{"N": 1.35, "C": 1.5, "O": 1.25}[atom[0]] for atom in BACKBONE_ATOMS])
_MIN_CA_CA, _MIN_SIDE_CHAINS = 4.0, 3.2
_REACH, _REACH_WIDTH = 7.8, 0.8  # a contact: CA to CA, with a soft edge

# Letters drawn in each conformation, as often as they are written; a floor lets all 20 occur everywhere.
_LETTERS = "ACDEFGHIKLMNPQRSTVWY"
_PROPENSITIES = (
    "AAAAAAALLLLLLLEEEEEEKKKKKKMMMQQQQRRRRIFWH",
    "VVVVVVVVIIIIIIYYYYFFFFWWTTTTTCCLRKEQ",
    "DDDDDDNNNNNSSSSEKKH",
    "SSSSTTTTTTRQYHHVC",
    "PPPPPPPPPPPPKSE",
    "GGGGGGGGGGGGGNNNNND",
)
_PROPENSITY_FLOOR = 0.2
_BURIAL_STRENGTH, _BURIAL_RADIUS = 1.0, 10.0
_HYDROPATHY = np.array([(c in "ACFILMVWY") * 1.0 - (c in "DEHKNQR") for c in _LETTERS])


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances `(..., n, m)` between points `(..., n, 3)` and `(..., m, 3)`."""
    norms = np.einsum("...i,...i", a, a)[..., None] + np.einsum("...i,...i", b, b)[..., None, :]
    return norms - 2 * a @ b.swapaxes(-1, -2)


def _scores(placed: np.ndarray, new: np.ndarray, loop: int) -> np.ndarray:
    """
    Contacts `(k,)` that the residues behind the `loop` make with those placed, minus the radius of gyration in Å of
    all; minus infinity where two CA clash. `placed` `(p, 3)` and `new` `(k, n, 3)` are CA.
    """
    p, (k, n) = len(placed), new.shape[:2]
    apart = p + np.arange(n)[:, None] - np.arange(p + n)
    squared = _squared(new, np.concatenate([np.broadcast_to(placed, (k, p, 3)), new], axis=1))
    clash = (np.where(apart >= 3, squared, np.inf) < _MIN_CA_CA**2).any(axis=(1, 2))
    distances = np.sqrt(np.maximum(squared[:, loop:, :p], 0.0))
    near = 1.0 / (1.0 + np.exp(np.minimum((distances - _REACH) / _REACH_WIDTH, 50.0)))
    contacts = (near * (apart[loop:, :p] >= 4)).sum(axis=(1, 2))
    mean = (placed.sum(0) + new.sum(1)) / (p + n)
    gyration = np.sqrt(((placed**2).sum() + (new**2).sum((1, 2))) / (p + n) - (mean**2).sum(-1))
    return np.where(clash, -np.inf, contacts - gyration)


def _side_chains_clash(placed: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Whether the side-chain centres `(k, n, 3)` come too close to those placed `(p, 3)`: bool `(k,)`."""
    # The first two new residues are neighbours of the last one placed.
    return (_squared(new[:, 2:], placed) < _MIN_SIDE_CHAINS**2).any(axis=(1, 2))


@cache
def _turns(before: int, after: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """
    The loops of one length that best pack an element against the one before it, as real turns do: states
    `(t, length)` and torsions `(t, length, 2)`.

    A seeded random search and a refinement of each loop found. Turns are few and each is written in its own letters,
    which is also what lets the packing be learnt from the sequence.
    """
    rng = np.random.default_rng([before, after, length])
    arms = [np.repeat(_IDEAL[[state]], _TURN_ARMS[state], axis=0) for state in (before, after)]
    rotations, origins = walk_from_origin(arms[0])

    def best(states: np.ndarray, torsions: np.ndarray, count: int) -> np.ndarray:
        """The best of each sequence of states, `count` of them."""
        wide = [np.broadcast_to(arm, (len(states), *arm.shape)) for arm in (arms[0][-1:], arms[1])]
        turned, shifted = walk(np.concatenate([wide[0], torsions, wide[1]], axis=1))
        turned, shifted = rotations[-1] @ turned, shifted @ rotations[-1].T + origins[-1]
        pair = place_point(rotations, origins, CA_POINT), place_point(turned, shifted, CA_POINT)
        scores = _scores(*pair, length)
        pair = place_point(rotations, origins, SIDE_CHAIN_POINT), place_point(turned, shifted, SIDE_CHAIN_POINT)
        scores[_side_chains_clash(*pair)] = -np.inf
        found: dict[bytes, int] = {}
        for i in np.argsort(-scores, kind="stable")[: np.isfinite(scores).sum()]:
            found.setdefault(states[i].tobytes(), i)
        return np.array(list(found.values())[:count])

    states = rng.integers(_FIRST_LOOP_STATE, len(_STATES), size=(_TURN_TRIALS, length))
    torsions = _IDEAL[states] + rng.uniform(-_TURN_SPREAD, _TURN_SPREAD, size=(*states.shape, 2))
    chosen = best(states, torsions, 4 * _TURNS)
    for step in (10.0, 6.0, 3.0):
        states, torsions = np.repeat(states[chosen], 12, axis=0), np.repeat(torsions[chosen], 12, axis=0)
        moved = torsions + rng.uniform(-step, step, size=torsions.shape)
        moved[::12] = torsions[::12]  # what was found is never lost
        torsions = np.clip(moved, _IDEAL[states] - _TURN_SPREAD, _IDEAL[states] + _TURN_SPREAD)
        chosen = best(states, torsions, 4 * _TURNS)
    return states[chosen[:_TURNS]], torsions[chosen[:_TURNS]]


def _plan(kind: str, length: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Elements (state, residues) in turn with loops (-1, residues): a tail first, a tail last."""

    def draw() -> int:
        return {"helix": _HELIX, "strand": _STRAND}.get(kind, int(rng.integers(2)))

    room, state = length - 2 * _TAIL, draw()
    plan = [[-1, _TAIL]]
    while True:
        # The second element of a mixed fold is of the other kind, and the first must leave room for it.
        reserve = kind == "mixed" and len(plan) == 1
        following = 1 - state if reserve else draw()
        needed = _LOOP_LENGTHS[0] + _ELEMENT_LENGTHS[following][0]
        size = int(rng.integers(_ELEMENT_LENGTHS[state][0], _ELEMENT_LENGTHS[state][1] + 1))
        size = min(size, room - reserve * needed)
        plan.append([state, size])
        room -= size
        if room < needed:
            break
        loop = int(rng.integers(_LOOP_LENGTHS[0], _LOOP_LENGTHS[1] + 1))
        if state == following == _HELIX:
            loop = max(loop, 4)  # three residues cannot turn a helix back along another
        loop = min(loop, room - _ELEMENT_LENGTHS[following][0])
        plan.append([-1, loop])
        room -= loop
        state = following
    plan.append([-1, _TAIL])
    while room:  # what is left lengthens elements up to their longest, then the tails
        short = [s for s in plan if s[0] >= 0 and s[1] < _ELEMENT_LENGTHS[s[0]][1]] or [plan[0], plan[-1]]
        short[rng.integers(len(short))][1] += 1
        room -= 1
    return [(state, size) for state, size in plan]


def _clashes(atoms: np.ndarray, start: int) -> bool:
    """Whether an atom of the residues from `start` on is too close to one of a residue that is not its neighbour."""
    apart = np.arange(start, len(atoms))[:, None] - np.arange(len(atoms))
    squared = _squared(atoms[start:].reshape(-1, 3), atoms.reshape(-1, 3)).reshape(-1, 5, len(atoms), 5)
    near = squared < (_RADII[:, None, None] + _RADII) ** 2
    return bool((near & (apart >= 2)[:, None, :, None]).any())


def _grow(plan: list[tuple[int, int]], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Folds a plan element by element; where the chain has no way on, its last two elements are folded anew.

    Returns states `(L,)` and atoms `(L, 5, 3)`, or `None` where the chain kept running into itself.
    """
    first = rng.integers(_FIRST_LOOP_STATE, len(_STATES), size=1)
    start = np.eye(3)[None], np.zeros((1, 3))
    chain = first, _IDEAL[first], *start, place_atoms(*start, _IDEAL[first, 1])
    ends, failures = [1], 0
    while len(ends) <= (len(plan) + 1) // 2:
        grown = _extend(chain, plan, 2 * (len(ends) - 1), rng)
        if grown is not None:
            chain = grown
            ends.append(len(chain[0]))
        elif failures < _FAILURES:
            failures += 1
            ends = ends[: max(1, len(ends) - 2)]
            chain = tuple(part[: ends[-1]] for part in chain)
        else:
            return None
    return chain[0], chain[-1]


def _extend(
    chain: tuple[np.ndarray, ...], plan: list[tuple[int, int]], i: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...] | None:
    """
    The chain (states, torsions, rotations, origins, atoms) with loop `i` of the plan and the element behind it: the
    best packed of many candidates that do not clash, or `None` where all do.
    """
    _, torsions, rotations, origins, atoms = chain
    loop = plan[i][1] - (i == 0)  # the first residue lies at the origin already
    for packed in (True, True, False):
        s, t = _candidates(plan, i, loop, packed, rng)
        turned, shifted = walk(np.concatenate([np.broadcast_to(torsions[-1:], (len(s), 1, 2)), t], axis=1))
        turned, shifted = rotations[-1] @ turned, shifted @ rotations[-1].T + origins[-1]
        scores = _scores(atoms[:, 1], place_point(turned, shifted, CA_POINT), loop)
        best = np.argsort(-scores, kind="stable")[:_CHECKED]
        side_chains = place_point(turned[best], shifted[best], SIDE_CHAIN_POINT)
        crowded = _side_chains_clash(side_chain_points(atoms), side_chains)
        for c in best[np.isfinite(scores[best]) & ~crowded]:
            grown = np.concatenate([atoms, place_atoms(turned[c], shifted[c], t[c, :, 1])])
            if not _clashes(grown, len(atoms)):
                return *(np.concatenate(pair) for pair in zip(chain, (s[c], t[c], turned[c], shifted[c]))), grown
    return None


def _candidates(
    plan: list[tuple[int, int]], i: int, loop: int, packed: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """States `(k, n)` and torsions `(k, n, 2)` for loop `i` of the plan and the element behind it, if there is one."""
    state, size = plan[i + 1] if i + 1 < len(plan) else (_EXTENDED, 0)
    if packed and 0 < i < len(plan) - 1:
        turns, centres = _turns(plan[i - 1][0], state, loop)
        chosen = rng.integers(len(turns), size=_CANDIDATES)
        turns, centres = turns[chosen], centres[chosen]
    else:
        turns = rng.integers(_FIRST_LOOP_STATE, len(_STATES), size=(_CANDIDATES, loop))
        centres = _IDEAL[turns]
    states = np.concatenate([turns, np.full((_CANDIDATES, size), state)], axis=1)
    torsions = np.concatenate([centres, np.broadcast_to(_IDEAL[state], (_CANDIDATES, size, 2))], axis=1)
    noise = np.repeat(_TORSION_NOISE[::-1], (loop, size))
    return states, torsions + noise[:, None] * rng.standard_normal(torsions.shape)


def _letters(states: np.ndarray, atoms: np.ndarray, rng: np.random.Generator) -> str:
    """
    Samples a sequence for conformations `(L,)` and atoms `(L, 5, 3)`: the letters a conformation likes, hydrophobic
    ones rather inside and charged ones rather outside, so that elements become amphipathic.
    """
    counts = np.array([[propensity.count(letter) for letter in _LETTERS] for propensity in _PROPENSITIES], dtype=float)
    weights = np.log(counts + _PROPENSITY_FLOOR)[states]
    neighbours = (_squared(side_chain_points(atoms), atoms[:, 1]) < _BURIAL_RADIUS**2).sum(1)
    burial = (neighbours - neighbours.mean()) / max(neighbours.std(), 1e-6)
    weights += _BURIAL_STRENGTH * np.clip(burial, -1.5, 1.5)[:, None] * _HYDROPATHY
    # The largest of the log-weights with Gumbel noise is a sample of the softmax.
    return "".join(_LETTERS[i] for i in (weights + rng.gumbel(size=weights.shape)).argmax(1))


def synthetic_chain(
    kind: str, length: int, seed: int, resolution: float | None = None, r_free: float | None = None
) -> ProteinChain:
    """
    Makes one synthetic fold. It is no real protein: see the head of this module.

    Args:
        kind (`str`): `"helix"`, `"strand"` or `"mixed"`.
        length (`int`): Number of residues, 24 to 300.
        seed (`int`): Not negative. The same arguments give the same chain.
        resolution (`float`, *optional*): Passed on to the chain (Å), for trying out filters by quality.
        r_free (`float`, *optional*): Passed on to the chain.

    Returns:
        `ProteinChain`: `syn00042_A` for seed 42, method `"THEORETICAL MODEL"`. Coordinates have three decimals, as in
        a structure file, and CB of glycine is NaN. B-factors are 100, the pLDDT of a faultless prediction.

    Raises:
        ValueError: An unknown kind, or a length or seed out of range.
        RuntimeError: No fold without clashes was found, which the lengths allowed make very unlikely.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}.")
    _check_integer("length", length, MIN_LENGTH, MAX_LENGTH)
    _check_integer("seed", seed, 0)
    rng = np.random.default_rng([seed, length, KINDS.index(kind)])
    for _ in range(_RESTARTS):
        grown = _grow(_plan(kind, length, rng), rng)
        if grown is not None:
            break
    else:
        raise RuntimeError(
            f"no {kind} fold of {length} residues without clashes in {_RESTARTS} tries with seed {seed}; use another "
            "seed or a shorter chain."
        )
    states, atoms = grown
    sequence = _letters(states, atoms, rng)
    coords = np.round(atoms - atoms[:, 1].mean(0), 3).astype(np.float32)
    coords[[letter == "G" for letter in sequence], BACKBONE_ATOMS.index("CB")] = np.nan
    return ProteinChain(
        entry_id=f"syn{seed:05d}",
        chain_id="A",
        sequence=sequence,
        coords=coords,
        residue_numbers=tuple(str(i + 1) for i in range(length)),
        b_factors=np.full(length, 100.0, dtype=np.float32),
        resolution=resolution,
        r_free=r_free,
        method="THEORETICAL MODEL",
        predicted=True,
    )


def synthetic_chains(
    count: int,
    seed: int = 0,
    min_length: int = 40,
    max_length: int = 120,
    resolution: float | None = None,
    r_free: float | None = None,
) -> list[ProteinChain]:
    """
    Makes `count` synthetic folds, helix, strand and mixed in turn, of lengths drawn evenly. They are no real proteins.

    Chain i has the seed `seed * 100_000 + i`, so sets of different seeds (training and test, say) share no entry id,
    and a larger set begins with the smaller one.

    Args:
        count (`int`): 1 to 100,000.
        seed (`int`, *optional*, defaults to 0): Not negative.
        min_length (`int`, *optional*, defaults to 40): Shortest chain, at least 24.
        max_length (`int`, *optional*, defaults to 120): Longest chain, at most 300.
        resolution (`float`, *optional*): Given to every chain (Å).
        r_free (`float`, *optional*): Given to every chain.

    Returns:
        `list[ProteinChain]`: In the order of their seeds.

    Raises:
        ValueError: A number out of range.
    """
    _check_integer("count", count, 1, SEED_STRIDE)
    _check_integer("seed", seed, 0)
    _check_integer("max_length", max_length, MIN_LENGTH, MAX_LENGTH)
    _check_integer("min_length", min_length, MIN_LENGTH, max_length)
    lengths = np.random.default_rng(seed).integers(min_length, max_length + 1, size=count)
    return [
        synthetic_chain(KINDS[i % len(KINDS)], int(length), seed * SEED_STRIDE + i, resolution, r_free)
        for i, length in enumerate(lengths)
    ]


def write_synthetic_folds(
    folder: str | os.PathLike,
    count: int,
    seed: int = 0,
    min_length: int = 40,
    max_length: int = 120,
    resolution: float | None = None,
    r_free: float | None = None,
) -> list[Path]:
    """
    Writes the chains of [`synthetic_chains`] as `<entry_id>.cif`, to be read with `read_chains`.

    Args:
        folder (`str` or `os.PathLike`): Made where it does not exist; files of the same name are replaced.
        count, seed, min_length, max_length, resolution, r_free: As in [`synthetic_chains`].

    Returns:
        `list[Path]`: The files. Equal arguments give equal bytes.

    Raises:
        ValueError: A number out of range.
    """
    chains = synthetic_chains(count, seed, min_length, max_length, resolution, r_free)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{chain.entry_id}.cif" for chain in chains]
    for chain, path in zip(chains, paths):
        write_mmcif(chain, path)
    return paths


def _check_integer(name: str, value: int, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low or value > (high or value):
        wanted = f"{low} to {high}" if high is not None else f"{low} or more"
        raise ValueError(f"{name} is {value!r}; expected an integer, {wanted}.")
