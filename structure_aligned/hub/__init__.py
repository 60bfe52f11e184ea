"""What leaves the house: checkpoints in the plain layouts of their families."""
