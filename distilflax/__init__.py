"""DistilBERT in JAX/Flax: distil a BERT-like encoder into a student of half its depth."""
