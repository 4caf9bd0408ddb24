"""What flows into the layers of a stage, in one pass over the samples."""
