"""Structure files, residue graphs, 3Di tokens: numpy, torch and gemmi only, no Transformers."""
