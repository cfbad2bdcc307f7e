"""The ops for arrays of other libraries. Only torch*.py, transformers*.py and jax.py import one, when first used."""
