"""What happens on the device, without torch: what it is, whether a bundle fits, engines, latency.

- ``profile``, ``machine``, ``detect``: what devices are like, and which of them this machine is;
- :func:`trunkline.targets.plan.make_plan`: what will run in which precision, whether it fits, and what to do if not;
- ``memory``, ``estimate``, ``advice``: the numbers behind that;
- :func:`trunkline.targets.building.run.build`: engines, used only after they were seen to decide right here;
- :func:`trunkline.targets.latency.measure`: percentiles per stage and per everyday call.
"""
