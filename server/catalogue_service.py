# ruff: noqa: N802 - the contract names the methods
"""What there is to know before a compression, on the wire."""

from __future__ import annotations

from typing import Any

import grpc

from punnet.v1 import catalogue_pb2, catalogue_pb2_grpc
from server.callers import tenant
from server.intake_requests import IntakeRequests
from server.job_message import job_message
from server.job_spec import inspection_spec
from server.jobs import JobEngine
from server.page_token import parse_token, to_token
from server.request_check import check_inspection, page_size, violation
from server.students import StudentCatalogue

Context = grpc.aio.ServicerContext[Any, Any]
PAGE_SIZE, PAGE_LIMIT = 50, 2000
NAME_PART_CHARACTERS = 100
MEASURED_PIXELS = range(8, 1025)


class CatalogueService(catalogue_pb2_grpc.CatalogueServiceServicer):
    """Inspects teachers and lists students."""

    def __init__(self, engine: JobEngine, students: StudentCatalogue, intake: IntakeRequests) -> None:
        self._engine = engine
        self._students = students
        self._intake = intake

    async def InspectTeacher(
        self, request: catalogue_pb2.InspectTeacherRequest, context: Context
    ) -> catalogue_pb2.InspectTeacherResponse:
        """Accept an inspection."""
        check_inspection(request)
        spec = inspection_spec(request)
        await self._intake.prepare(tenant(), request, spec)
        job = await self._engine.submit(tenant(), "inspect", spec, request.request_id)
        return catalogue_pb2.InspectTeacherResponse(job=job_message(job))

    async def ListStudents(
        self, request: catalogue_pb2.ListStudentsRequest, context: Context
    ) -> catalogue_pb2.ListStudentsResponse:
        """A page of students, or one that is timed."""
        if request.measure:
            row = await self._students.time(*check_measured(request))
            return catalogue_pb2.ListStudentsResponse(students=[catalogue_pb2.Student(**row)])
        size = page_size(request.page_size, default=PAGE_SIZE, limit=PAGE_LIMIT)
        (after,) = parse_token(request.page_token, (str,)) if request.page_token else ("",)
        part = request.name_contains
        if len(part) > NAME_PART_CHARACTERS or not part.isprintable():
            raise violation("name_contains", f"at most {NAME_PART_CHARACTERS} printable characters", part)
        rows = [row for row in await self._students.list(part) if row["name"] > after]
        page, more = rows[:size], rows[size:]
        return catalogue_pb2.ListStudentsResponse(
            students=[catalogue_pb2.Student(**row) for row in page],
            next_page_token=to_token(page[-1]["name"]) if more else "",
        )


def check_measured(request: catalogue_pb2.ListStudentsRequest) -> tuple[str, int]:
    """The name and the size that a request asks to measure."""
    name, size = request.measure, request.measure_size
    if len(name) > NAME_PART_CHARACTERS or not name.isprintable():
        raise violation("measure", f"at most {NAME_PART_CHARACTERS} printable characters", name)
    if size and size not in MEASURED_PIXELS:
        raise violation("measure_size", f"{MEASURED_PIXELS.start} to {MEASURED_PIXELS.stop - 1} pixels, or 0", size)
    return name, size
