"""Engines built on the device that runs them, and used only after they were seen to decide right there.

- :func:`trunkline.targets.building.run.build` compiles the stages of a bundle, runs its golden vectors on what came
  out, and takes the engines into use if the gate passes.
- :func:`trunkline.targets.building.run.verify_again` runs the golden vectors on engines that are in use.
- :func:`trunkline.targets.building.bisect.find_layer` names the layer at which a compiled stage goes wrong.

Nothing here imports torch or onnx, and nothing knows one compiler from another: who compiles is handed in
(:class:`trunkline.runtime.engines.settings.Builder`).
"""
