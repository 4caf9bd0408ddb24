"""Fast sensors: a cache of the stream, windows of it, and what a bundle says about the stream it was trained on.

::

    cache = SensorCache(ensemble.sensor)
    cache.push(stamps_ns, samples, received_ns=time.monotonic_ns())    # one receiving thread
    decision = ensemble.score(image, instruction, histories, sensor=cache.aligned())    # any other
"""

from trunkline.runtime.sensor.cache import SensorCache
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.intake import Counts, StreamRules
from trunkline.runtime.sensor.window import SensorWindow

__all__ = ["Counts", "SensorCache", "SensorForm", "SensorWindow", "StreamRules"]
