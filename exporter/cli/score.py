"""``trunkline score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trunkline.exporter.cli.options import BackendOption, BundleArgument, JsonOption
from trunkline.exporter.cli.output import print_json, print_table, show
from trunkline.runtime.errors import CandidateError

#: 4096 windows as JSON text stay well under this.
MAX_CANDIDATE_BYTES = 64 << 20


def command(
    bundle: BundleArgument,
    image: Annotated[Path, typer.Option("--image", metavar="FILE", help="Camera image: PNG, JPEG, ...")],
    instruction: Annotated[list[str], typer.Option("--instruction", metavar="TEXT", help="Repeat it for rephrasings.")],
    candidates: Annotated[
        Path, typer.Option("--candidates", metavar="FILE", help="Windows as .npy (N, steps, numbers) or .json lists.")
    ],
    backend: BackendOption = None,
    json: JsonOption = False,
) -> None:
    """Score candidate action windows for one image and instruction, best first.

    **Example**

        trunkline score bundle/ --image frame.png --instruction "put the red block in the bowl" --candidates c.npy
    """
    from trunkline.runtime.backends import described
    from trunkline.runtime.ensemble import load
    from trunkline.runtime.image import open_image

    histories = read_candidates(candidates)
    picture = open_image(image)
    with load(bundle, backend=backend) as ensemble:
        decision = ensemble.score(picture, list(instruction), histories)
        members, ran_on = ensemble.members, described(ensemble.backend)
    if json:
        print_json(
            {
                "instructions": instruction,
                "members": members,
                "backend": ran_on,
                **vars(decision),
                "disagreement": decision.disagreement,
            }
        )
        return
    scores, spread = decision.scores.max(axis=0), decision.disagreement
    chosen = decision.scores.argmax(axis=0)
    order = (-scores).argsort(kind="stable")
    rows: list[list[object]] = [
        [rank, int(index), f"{scores[index]:+.4f}", f"{spread[chosen[index], index]:.4f}", instruction[chosen[index]]]
        for rank, index in enumerate(order, 1)
    ]
    print_table(f"best candidate: {decision.best}", ["rank", "candidate", "score", "disagreement", "instruction"], rows)
    show(ran_on)


def read_candidates(file: Path) -> Any:
    """Windows from a ``.npy`` or ``.json`` file.

    Raises:
        CandidateError: the file cannot be read as numbers.
    """
    import numpy as np

    from trunkline.runtime.record import RecordError, parse

    try:
        if file.stat().st_size > MAX_CANDIDATE_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes, more than {MAX_CANDIDATE_BYTES}")
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        return parse(file.read_bytes())
    except (OSError, ValueError, EOFError, RecordError) as error:
        raise CandidateError(
            "cannot read candidates",
            where=file,
            expected=".npy array (N, steps, numbers), or .json list of windows, each a list of steps",
            found=str(error),
            fix="write them with numpy.save or json.dump",
        ) from error
