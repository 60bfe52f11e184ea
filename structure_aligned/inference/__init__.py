"""From sequences to embeddings and predicted structure tokens, in memory and from FASTA to files."""
