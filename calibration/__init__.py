"""Samples of what the robot sees, and what is done with them.

- ``samples``: data sets and folders, split into samples that calibrate and samples that judge;
- ``windows``: windows of a sensor's recording, cut once and kept on disk;
- ``replay``: what a robot recorded, decided again with another bundle;
- ``statistics``: what flows into linear layers, collected in one pass;
- ``int8``: ranges, smoothing, placement, and the search for the fastest mix that keeps the decisions;
- ``half``: float16 for GPUs, with float32 islands;
- ``tensorrt_rules``: whether TensorRT would take a graph;
- ``evaluation``: how often the right window wins;
- ``defaults``: what an export does unless it is told otherwise;
- ``dataflow``: how tensors of a bundle come from each other.
"""
