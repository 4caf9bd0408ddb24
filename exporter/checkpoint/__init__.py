"""Training checkpoints and ensembles: reading, packing, writing, examining. See docs/checkpoints.md."""
