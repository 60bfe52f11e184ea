"""The alignment objective as pure functions on tensors: no models, no files, no training loop."""
