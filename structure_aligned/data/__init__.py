"""From structure files to batches: feature store, dataset builder, collator."""
