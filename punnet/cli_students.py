"""`punnet students`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from punnet import cli_options as o
from punnet.cli_output import notices, print_document, print_table
from punnet.client import Client
from punnet.errors import PunnetError
from punnet.v1 import catalogue_pb2

KEYS = ("name", "parameters", "macs", "size", "latency_ms", "source")
Students = list[catalogue_pb2.Student]


def students(
    name_contains: Annotated[
        str, typer.Argument(metavar="[PART]", help="A part of the name; without it, those that Punnet recommends.")
    ] = "",
    *,
    max_parameters: Annotated[int | None, typer.Option("--max-parameters", help="Leave out larger ones.")] = None,
    max_macs: Annotated[
        int | None, typer.Option("--max-macs", help="Leave out those with more multiply-accumulates.")
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        typer.Option("--max-latency-ms", help="Time those that were not timed here; leave out slower ones."),
    ] = None,
    max_size: Annotated[
        int | None, typer.Option("--max-size", help="Leave out those designed for larger images, in pixels.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Count and time at this image size in pixels, not at their own.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time those that were not timed here: seconds each, once a machine.")
    ] = False,
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """List networks that can be trained."""
    timing = measure or size is not None or max_latency_ms is not None
    limits = [("parameters", max_parameters), ("macs", max_macs), ("latency_ms", max_latency_ms), ("size", max_size)]
    with Client(server, data=data) as client:
        found = within_limits(client.students(name_contains), [("size", max_size)])
        if timing:
            # Parameters are the same at every size; what was not counted yet may still be small.
            found = within_limits(found, [("parameters", max_parameters)], unknown=True)
            found = timed(client, found, size)
            limits = [limit for limit in limits if limit[0] != "size"]
    found = within_limits(found, limits)
    if as_json:
        print_document({"students": [{key: getattr(student, key) for key in KEYS} for student in found]})
        return
    rows = [
        (s.name, count(s.parameters), count(s.macs), s.size or "-", milliseconds(s.latency_ms), s.source) for s in found
    ]
    columns = ("name", "parameters", "multiply-accumulates", "size", "ms an image", "source")
    print_table("Students", columns, rows)


def timed(client: Client, found: Students, size: int | None) -> Students:
    """The same, each timed at a size; None: its own. Those that can't take it are named and left out."""
    done: Students = []
    with notices().status("timing") as status:
        for number, student in enumerate(found, start=1):
            status.update(f"timing {student.name}, {number} of {len(found)}")
            if student.latency_ms and size in (None, student.size):
                done.append(student)
                continue
            try:
                done.append(client.timed_student(student.name, size or 0))
            except PunnetError as error:
                if error.code != "STUDENT_UNSUPPORTED":
                    raise
                notices().print(error.message, markup=False)
    return done


def within_limits(
    found: Sequence[catalogue_pb2.Student], limits: Sequence[tuple[str, float | None]], *, unknown: bool = False
) -> Students:
    """Those that are known to meet the limits by field; without limits all of them.

    Args:
        unknown: keep those of which a limited field is not known.
    """
    asked = [(name, limit) for name, limit in limits if limit is not None]
    least = 0 if unknown else 1e-9
    return [s for s in found if all(least <= getattr(s, name) <= limit for name, limit in asked)]


def count(number: int) -> str:
    """A number with separators; a dash where it was not counted."""
    return f"{number:,}" if number else "-"


def milliseconds(value: float) -> str:
    """A time; a dash where it was not measured."""
    return f"{value:.3g}" if value else "-"
