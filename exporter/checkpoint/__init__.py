"""Training checkpoints and merged ensembles: reading, merging, writing, examining. See docs/checkpoints.md."""
