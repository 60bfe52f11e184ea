"""What a model knows: contacts read from its attentions or hidden states, measured against structures."""
