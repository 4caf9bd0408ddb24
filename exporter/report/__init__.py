"""A page about a bundle: whether it decides as PyTorch did, what int8 cost, how large and how fast it is.

::

    from trunkline.exporter.report import write_report

    report = write_report("bundle/", "report.html")
    print(report.verdict.sentence)

:func:`~trunkline.exporter.report.collect.collect` opens, runs and measures and gives a
:class:`~trunkline.exporter.report.content.Report`, plain records;
:func:`~trunkline.exporter.report.page.render` makes the page of one. Neither needs torch, so that a report can be made
on the robot, too.
"""

from trunkline.exporter.report.collect import collect
from trunkline.exporter.report.content import Report
from trunkline.exporter.report.page import render
from trunkline.exporter.report.write import write_report

__all__ = ["Report", "collect", "render", "write_report"]
