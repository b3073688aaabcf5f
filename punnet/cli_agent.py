"""`punnet agent` and `punnet build`."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from punnet import cli_options as o
from punnet.agent import AgentSettings, read_device_facts, run_agent
from punnet.aio import AsyncClient, state_name
from punnet.cli_jobs import full_id
from punnet.cli_output import artifact_documents, bytes_text, print_document
from punnet.cli_progress import run_to_end, transfer_bar
from punnet.client import Client
from punnet.errors import InvalidRequest

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
WORK = Path("~/.cache/punnet/agent")


def agent(
    *,
    name: Annotated[str, typer.Option("--name", help="Of this device; no two agents have the same.")],
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="It serves; may be repeated. Else by its CUDA device.")
    ] = None,
    work: Annotated[Path, typer.Option("--work", metavar="DIR", help="Where builds come and go.")] = WORK,
    poll: Annotated[float, typer.Option("--poll", min=0.1, help="Seconds between two questions for work.")] = 5.0,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="Of measuring for each batch.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="End after one build.")] = False,
    server: o.Server = None,
    data: o.Data = None,
) -> None:
    """Build and measure engines on this device, for an appliance. Ends with Ctrl-C or SIGTERM."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"--name {name!r} is no name.",
            code="REQUEST_INVALID",
            remedy='Give 1 to 63 characters of [a-z0-9-], not starting or ending with "-".',
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = AgentSettings(
        name=name,
        targets=tuple(targets or ()),
        work=work.expanduser() / name,
        poll_seconds=poll,
        measure_seconds=seconds,
        once=once,
    )
    asyncio.run(_serve(settings, server, data))


async def _serve(settings: AgentSettings, server: str | None, data: Path | None) -> None:
    targets = settings.targets or await _targets_of_device()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncClient(server, data=data) as client:
        logging.getLogger("punnet.agent").info("%s serves %s for %s", settings.name, ", ".join(targets), client.address)
        await run_agent(client, replace(settings, targets=targets), stop)


async def _targets_of_device() -> tuple[str, ...]:
    facts = await read_device_facts()
    if not facts["targets"]:
        device = facts["device"]["name"] if facts["device"] else "no CUDA device"
        builders = ", ".join(facts["builders"]) or "none"
        raise InvalidRequest(
            f"This machine serves no target: {device}, builders {builders}.",
            code="REQUEST_INVALID",
            remedy="Install TensorRT or TensorRT for RTX here, or state the targets with --target.",
        )
    return tuple(facts["targets"])


def build(
    *,
    job: o.JobId,
    target: Annotated[str, typer.Option("--target", help="One that the job made a bundle for.")],
    agent: Annotated[str, typer.Option("--agent", help="Only this one may build it.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Wait, and put engines and report here.")
    ] = None,
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """Ask for a finished job's engines, built and timed on a device by an agent there."""
    with Client(server, data=data) as client:
        started = client.build(full_id(client, job), target, agent=agent)
        if out is None:
            found = client.job(started.id)
        else:
            found = run_to_end(client, started.id, then=f"punnet download {started.id} --out {out}")
            with transfer_bar("downloading") as progress:
                client.download(started.id, out, progress)
    if as_json:
        print_document({"job": found.id, "state": state_name(found), "artifacts": artifact_documents(found)})
    elif out is None:
        typer.echo(f"{found.id}  {state_name(found)}: punnet watch {found.id}")
    else:
        for artifact in found.artifacts:
            typer.echo(f"{out / artifact.path}  {bytes_text(artifact.size)}")
