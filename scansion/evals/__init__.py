"""RunResults: one file each, from (SAE, language model, data) to a typed result with a status."""
