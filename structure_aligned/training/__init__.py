"""The Trainer for the dual-task objective, its arguments and its table."""
