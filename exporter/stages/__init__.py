"""The torch modules that become stages, and their tracing.

To add a stage: write its module, add its contract to ``trunkline.runtime.manifest.verifier_contract``, and its
constructor to ``trunkline.exporter.export``.
"""
