"""int8 that keeps the decisions.

Read in this order: ``linears`` (the layers), ``smoothing`` and ``ranges`` (what is done before), ``placement`` (what is
written), ``stage_plan`` (one stage, ready to be written in any mix), ``judge`` and ``search`` (which mix), ``compress``
(all of it, on a bundle), ``outcome`` (the record that stays).
"""
