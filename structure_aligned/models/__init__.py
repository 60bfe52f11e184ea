"""Networks: alignment heads on sequence trunks, and the protein graph networks they are aligned with."""
