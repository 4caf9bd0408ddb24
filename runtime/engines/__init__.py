"""Engines: stages compiled for one device, kept between starts, and never trusted for being there.

A bundle holds no engine. An engine is made on the device that runs it, from the bundle's own stage, and can always be
made again. Compiling takes minutes, so engines are kept in a folder (:mod:`trunkline.runtime.engines.cache`):

- under the name of everything that made them (:mod:`trunkline.runtime.engines.key`), so that two heads of one
  architecture never meet;
- together with what was measured where they were built (:mod:`trunkline.runtime.engines.attestation`), so that nothing
  runs that was not seen to decide as the PyTorch ensemble does.

How a stage is to be compiled is a record, too (:mod:`trunkline.runtime.engines.settings`). Who compiles is not here:
``trunkline.targets`` does, and the runtime only reads what was kept.
"""
