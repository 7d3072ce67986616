"""Callers, each of which updates a schedule of its own and keeps what it was told."""

import collections
import threading
import time
from datetime import datetime, timedelta, timezone

import grpc

import service


class Caller(threading.Thread):
    """Updates a schedule of its own, one call after the other, each with a time of its own."""

    def __init__(self, number, api, stub, metadata, stop):
        super().__init__(daemon=True)
        self.messages, self.requests, _ = api
        self.number, self.stub, self.metadata, self.stopped = number, stub, metadata, stop
        self.told, self.failed, self.longest = {}, [], 0.0

    def schedule(self, n):
        instant = datetime.now(timezone.utc) + timedelta(days=1, milliseconds=n)
        return self.messages.Schedule(time=instant.isoformat(timespec="milliseconds").replace("+00:00", "Z"))

    def run(self):
        created = self.stub.CreateCanvasSchedule(
            self.requests.CreateCanvasScheduleRequest(canvas_id=f"canvas-{self.number}", broadcast=True, schedule=self.schedule(0)), metadata=self.metadata
        )
        self.schedule_id = created.canvas_schedule.schedule_id
        n = 0
        while not self.stopped.is_set():
            n += 1
            self.update(n)

    def update(self, n):
        # A request id makes a repeat safe also where the first answer was lost.
        request = self.requests.UpdateCanvasScheduleRequest(
            canvas_id=f"canvas-{self.number}", schedule_id=self.schedule_id, schedule=self.schedule(n), request_id=f"{self.number}-{n}"
        )
        began = time.monotonic()
        try:
            answer = self.stub.UpdateCanvasSchedule(request, timeout=20, metadata=self.metadata)
            self.told[answer.canvas_schedule.revision] = answer.canvas_schedule.schedule.time
        except grpc.RpcError as error:
            self.failed.append(error.code().name)
        self.longest = max(self.longest, time.monotonic() - began)

    def lost(self):
        """Revisions that were told and do not stand in the history as they were told."""
        kept = self.kept()
        return [(self.number, revision) for revision, instant in self.told.items() if kept.get(revision) != instant]

    def kept(self):
        """Times by revision, as the history has them."""
        kept, token = {}, ""
        while True:
            request = self.requests.ListCanvasScheduleRevisionsRequest(schedule_id=self.schedule_id, page_size=1000, page_token=token)
            page = self.stub.ListCanvasScheduleRevisions(request, metadata=self.metadata)
            kept.update({one.revision: one.schedule.time for one in page.revisions})
            token = page.next_page_token
            if not token:
                return kept


def join(callers):
    for caller in callers:
        caller.join(service.PATIENCE)
        assert not caller.is_alive(), "a call does not end"


def failed(callers):
    """How many calls failed, by code."""
    return collections.Counter(code for caller in callers for code in caller.failed)
