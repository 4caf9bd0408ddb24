"""Checkpoints in, bundles out; and the ``trunkline`` command.

The library calls behind the commands:

- :func:`trunkline.exporter.checkpoint.pack.pack`: training checkpoints to one ensemble file;
- :func:`trunkline.exporter.checkpoint.doctor.diagnose`: hazards in a checkpoint;
- :func:`trunkline.exporter.export.export`: a checkpoint to a bundle;
- :func:`trunkline.exporter.against.verify_against`: a bundle held against PyTorch;
- :func:`trunkline.exporter.report.write_report`: a page about a bundle.

This package imports nothing by itself, because the command line, which lives here, must start where torch is not
installed.
"""
