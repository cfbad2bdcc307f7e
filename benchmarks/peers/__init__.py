"""Other projects' tests with our attention in the place of theirs: `make test-peers PEERS=DIR`.

DIR holds checkouts of the user's: flash-attention, transformers. Nothing of theirs is in this repository.
"""
