"""The errors of this package; they belong to the tree in runtime/errors.py."""

from __future__ import annotations

from trunkline.runtime.errors import TrunklineError


class TargetError(TrunklineError):
    """A device profile is malformed or unknown, or none fits this machine."""
