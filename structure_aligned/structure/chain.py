"""The one representation of a protein chain that sequence, residue graph and 3Di tokens are all taken from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


BACKBONE_ATOMS = ("N", "CA", "C", "O", "CB")
"""Order of the second axis of `ProteinChain.coords`."""


@dataclass(frozen=True, eq=False)
class ProteinChain:
    """
    One observed protein chain. All residue-level fields share the residue axis, of length L.

    Args:
        entry_id (`str`): PDB id or file stem.
        chain_id (`str`): The author's chain id (auth_asym_id); `A-2` for the second molecule under the id `A`.
        sequence (`str`): One upper-case letter per observed residue, `X` where no parent amino acid is known.
        coords (`np.ndarray` of shape `(L, 5, 3)`, float32): N, CA, C, O, CB in Å; NaN where the atom is missing.
        residue_numbers (`tuple[str, ...]`): Author's residue numbers with insertion codes, such as `"52A"`.
        b_factors (`np.ndarray` of shape `(L,)`, float32): B-factor of CA (of the first atom present when CA is
            missing) in Å²; where `predicted`, the confidence that the file gives there instead: pLDDT, 0-100, in files
            of AlphaFold DB and most predictors, 0-1 in ESMFold's.
        resolution (`float`, *optional*): In Å; `None` where the method has none (NMR) or the file does not say.
        r_free (`float`, *optional*): `None` where the file does not say.
        method (`str`, *optional*): Experimental method as the file gives it, in upper case.
        deposition_date (`str`, *optional*): ISO date, `YYYY-MM-DD`.
        predicted (`bool`, *optional*, defaults to `False`): The coordinates are a model's prediction, not an
            experiment's result.
    """

    entry_id: str
    chain_id: str
    sequence: str
    coords: np.ndarray
    residue_numbers: tuple[str, ...]
    b_factors: np.ndarray
    resolution: float | None = None
    r_free: float | None = None
    method: str | None = None
    deposition_date: str | None = None
    predicted: bool = False

    def __post_init__(self) -> None:
        length = len(self.sequence)
        if self.coords.shape != (length, len(BACKBONE_ATOMS), 3):
            raise ValueError(
                f"{self.id}: coords have shape {self.coords.shape} but the sequence has {length} residues; "
                f"expected ({length}, {len(BACKBONE_ATOMS)}, 3), atoms ordered {', '.join(BACKBONE_ATOMS)}."
            )
        for name in ("residue_numbers", "b_factors"):
            if len(getattr(self, name)) != length:
                raise ValueError(
                    f"{self.id}: {name} has {len(getattr(self, name))} entries for {length} residues; give one each."
                )

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def id(self) -> str:
        """
        `entry_chain`, a label for people and tables. Both parts may contain `_`, so two chains can share it: chains
        are told apart by `entry_id` and `chain_id`. It may hold any character, so it is not a file name either.
        """
        return f"{self.entry_id}_{self.chain_id}"

    @property
    def ca(self) -> np.ndarray:
        """CA coordinates of shape `(L, 3)` in Å, NaN where missing."""
        return self.coords[:, BACKBONE_ATOMS.index("CA")]

    def digest(self) -> str:
        """
        SHA-256 over sequence, residue numbers and coordinates: what the features of a chain depend on (ProteinMPNN
        sees the gaps of the numbering), and nothing else.
        """
        state = hashlib.sha256(f"{self.sequence}|{','.join(self.residue_numbers)}|".encode())
        # NaN has many bit patterns; one of them is used so that equal chains have equal digests.
        coords = np.where(np.isnan(self.coords), np.float32(np.nan), self.coords.astype(np.float32))
        state.update(np.ascontiguousarray(coords).tobytes())
        return state.hexdigest()
