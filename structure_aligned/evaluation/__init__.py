"""What a model knows: contacts, mutation effects, probes, perplexity; and whether a difference is one."""
