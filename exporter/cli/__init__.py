"""The ``trunkline`` command.

Each command lives in a module of its own and wraps one library call. Nothing heavy is imported before a command
runs, so commands that make sense on a robot work where torch is not installed.

Exit codes: 0 done, 1 the user can fix it, 2 usage, 3 a parity gate failed, 4 integrity, 70 a bug in trunkline.
"""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trunkline.exporter.cli import (
    bench,
    build,
    doctor,
    evaluate,
    export,
    info,
    pack,
    plan,
    replay,
    report,
    score,
    targets,
    verify,
    windows,
)
from trunkline.exporter.cli.output import say, show, standard_streams, stderr
from trunkline.runtime import record
from trunkline.runtime.errors import TrunklineError

INTERRUPTED = 130
INTERNAL = 70


class Commands(TyperGroup):
    """The edge: every error becomes one message on stderr and an exit code; tracebacks only with ``--debug``."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Runs the command line on streams that always take text."""
        with standard_streams():
            try:
                return super().main(*args, **options)
            except TrunklineError as error:  # help that cannot be written
                say(f"error: {error}")
                sys.exit(error.exit_code)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuses words that are no text here: libraries take paths as UTF-8, and bundles hold nothing else."""
        broken = [word for word in args if not record.is_text(word)]
        if broken:
            raise typer.BadParameter(
                f"not text in {sys.getfilesystemencoding()}, the encoding of this environment: "
                f"{', '.join(map(ascii, broken))}. Rename the files, or set PYTHONUTF8=1 if the names are UTF-8."
            )
        return list(super().parse_args(ctx, args))

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command."""
        try:
            return super().invoke(ctx)
        except TrunklineError as error:
            self._trace(ctx)
            say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            say("interrupted; nothing was left half done")
            raise typer.Exit(INTERRUPTED) from error
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            if hasattr(error, "exit_code"):  # usage errors, which typer shows
                raise
            self._trace(ctx)
            say(f"a bug in trunkline: {type(error).__name__}: {error}\nplease report it with the output of --debug")
            raise typer.Exit(INTERNAL) from error

    @staticmethod
    def _trace(ctx: Any) -> None:
        if ctx.params.get("debug"):
            stderr.print_exception()


app = typer.Typer(
    name="trunkline",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="On a workstation: **pack**, **doctor**, **export**. On the robot: **targets**, **plan**, **build**, "
    "**verify**, **score**, **eval**, **bench**, **report**, **info**. Recordings: **windows**, **replay**. "
    "`trunkline COMMAND --help` shows examples.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        show(f"trunkline {metadata.version('trunkline')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", envvar="TRUNKLINE_DEBUG", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Compile a frozen trunk and its heads into one bundle, and score candidate actions with it on a robot.

    A *checkpoint* is what training wrote; a *bundle* is the directory that is copied to the robot.
    """


app.command("pack")(pack.command)
app.command("merge", hidden=True)(pack.under_its_former_name)
app.command("doctor")(doctor.command)
app.command("export")(export.command)
app.command("info")(info.command)
app.command("verify")(verify.command)
app.command("score")(score.command)
app.command("eval")(evaluate.command)
app.command("bench")(bench.command)
app.command("report")(report.command)
app.command("replay")(replay.command)
app.command("windows")(windows.command)
app.command("targets")(targets.command)
app.command("plan")(plan.command)
app.command("build")(build.command)


def main() -> None:
    """Runs the command line and exits."""
    app()
