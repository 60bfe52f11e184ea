"""From a trained model to what others use: plain checkpoints, model cards, the hub."""
