"""What happens on the device, without torch: measuring latency now, building engines later.

- :func:`trunkline.targets.latency.measure`: percentiles per stage and per everyday call.
"""
