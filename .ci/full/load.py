"""Callers that each update one schedule and record the acknowledged revisions."""

import collections
import threading
import time
from datetime import datetime, timedelta, timezone

import grpc

import service


class Caller(threading.Thread):
    """Creates one schedule and updates it to a different time with each call, one call after the other."""

    def __init__(self, number, api, stub, metadata, stop):
        super().__init__(daemon=True)
        self.messages, self.requests, _ = api
        self.number, self.stub, self.metadata, self.stopped = number, stub, metadata, stop
        self.acknowledged, self.failed, self.longest = {}, [], 0.0

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
        # A request id makes a retry safe even if the first response was lost.
        request = self.requests.UpdateCanvasScheduleRequest(
            canvas_id=f"canvas-{self.number}", schedule_id=self.schedule_id, schedule=self.schedule(n), request_id=f"{self.number}-{n}"
        )
        started = time.monotonic()
        try:
            response = self.stub.UpdateCanvasSchedule(request, timeout=20, metadata=self.metadata)
            self.acknowledged[response.canvas_schedule.revision] = response.canvas_schedule.schedule.time
        except grpc.RpcError as error:
            self.failed.append(error.code().name)
        self.longest = max(self.longest, time.monotonic() - started)

    def lost(self):
        """Returns the acknowledged revisions that are missing in the history or have another time there."""
        history = self.history()
        return [(self.number, revision) for revision, instant in self.acknowledged.items() if history.get(revision) != instant]

    def history(self):
        """Returns the times by revision, from the history."""
        times, token = {}, ""
        while True:
            request = self.requests.ListCanvasScheduleRevisionsRequest(schedule_id=self.schedule_id, page_size=1000, page_token=token)
            # After a refused connection, the channel waits before it connects again.
            page = self.stub.ListCanvasScheduleRevisions(request, metadata=self.metadata, timeout=20, wait_for_ready=True)
            times.update({revision.revision: revision.schedule.time for revision in page.revisions})
            token = page.next_page_token
            if not token:
                return times


def join(callers):
    for caller in callers:
        caller.join(service.TIMEOUT)
        assert not caller.is_alive(), "a call did not end"


def failed(callers):
    """Counts the failed calls by code."""
    return collections.Counter(code for caller in callers for code in caller.failed)
