"""What two implementations are compared on: instructions, and sizes of frames."""

from __future__ import annotations

PROBE_INSTRUCTIONS = (
    "put the red block in the bowl",
    "Move the GREEN ball to the left of the plate.",
    "pick up the carrot \u2013 then stack it on the caf\u00e9 mug!",
)
#: Sizes (height, width) of probe frames. The last one shrinks far more in height than in width: Pillow 13 resizes such
#: images in another order than earlier versions, and the parity check must notice.
FRAME_SIZES = ((240, 320), (128, 96), (180, 180), (640, 120))
