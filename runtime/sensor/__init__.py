"""Fast sensors: windows of a stream, and what a bundle says about the stream it was trained on."""
