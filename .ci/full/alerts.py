"""Prometheus over a live server: every query of the dashboard has data, and each alert fires after a fault that causes it, and not before.

The alerts are those of the chart with a shorter `for`. Needs prometheus and openssl. Usage: alerts.py BINARY
"""

import http.server
import json
import math
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from datetime import datetime, timedelta, timezone

import grpc

import service

CHART = service.ROOT / "helm/canvas-scheduler/files"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLawg"
# Seconds until an alert must fire. The slowest one needs entries that have been due for a minute.
ALERT_TIMEOUT = 120


class Prometheus:
    """Scrapes one server and evaluates the chart's alerts, both once a second."""

    def __init__(self, folder, target):
        self.port = service.free_port()
        rules = re.sub(r"for: \d+m", "for: 2s", (CHART / "alerts.yaml").read_text())
        (folder / "alerts.yaml").write_text(rules)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "alerts.yaml")],
            "scrape_configs": [{"job_name": "schedules", "static_configs": [{"targets": [target], "labels": {"namespace": "messaging"}}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        line = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/series", f"--web.listen-address=127.0.0.1:{self.port}"]
        service.processes.append(subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=open(folder / "prometheus.log", "wb")))
        service.until("Prometheus", lambda: service.get(f"http://127.0.0.1:{self.port}/-/ready")[0] == 200)
        self.started = time.time()

    def query_api(self, path, **query):
        status, body = service.get(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}")
        assert status == 200, body
        return json.loads(body)["data"]

    def firing(self):
        return {alert["labels"]["alertname"] for alert in self.query_api("alerts")["alerts"] if alert["state"] == "firing"}

    def has_data(self, expression):
        """Whether the expression had a value at any time since the start."""
        result = self.query_api("query_range", query=expression, start=self.started, end=time.time(), step=5)["result"]
        return any(math.isfinite(float(value)) for series in result for _, value in series["values"])


class Run:
    """The server, its database, a client and Prometheus, for the faults to use."""

    def __init__(self, folder, binary, postgres):
        self.postgres = postgres
        self.messages, self.requests, stub = service.api(folder)
        app = service.Service(binary, postgres.url)
        self.metadata = [("authorization", f"Bearer {app.key()}")]
        openssl = "openssl req -x509 -newkey rsa:2048 -nodes -days 3 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
        subprocess.run([*openssl.split(), "-keyout", folder / "tls.key", "-out", folder / "tls.crt"], check=True, capture_output=True)
        self.sink_port = service.free_port()
        (folder / "secret").write_text(SECRET)
        flags = ["--sink", "webhook", "--sink-url", f"http://127.0.0.1:{self.sink_port}/", "--sink-secret-file", str(folder / "secret")]
        flags += ["--tls-cert", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key"), "--workers", "2", "--writers", "1", "--queue-max", "4"]
        self.server = service.Server(app, folder / "server.log", *flags)
        credentials = grpc.ssl_channel_credentials((folder / "tls.crt").read_bytes())
        self.channel = grpc.secure_channel(f"127.0.0.1:{self.server.port}", credentials, [("grpc.ssl_target_name_override", "localhost")])
        self.stub = stub(self.channel)
        self.prometheus = Prometheus(folder, f"127.0.0.1:{self.server.admin_port}")

    def create(self, name, wait=timedelta()):
        when = (datetime.now(timezone.utc) + wait).isoformat(timespec="milliseconds")
        schedule = self.messages.Schedule(time=when)
        request = self.requests.CreateCanvasScheduleRequest(canvas_id=name, broadcast=True, schedule=schedule)
        return self.stub.CreateCanvasSchedule(request, metadata=self.metadata, timeout=20).canvas_schedule

    def update(self, canvas_id, schedule_id):
        schedule = self.messages.Schedule(time=(datetime.now(timezone.utc) + timedelta(days=1)).isoformat(timespec="milliseconds"))
        request = self.requests.UpdateCanvasScheduleRequest(canvas_id=canvas_id, schedule_id=schedule_id, schedule=schedule)
        return self.stub.UpdateCanvasSchedule(request, metadata=self.metadata, timeout=20)

    def sink(self, status):
        """Starts a sink that answers every request with this status."""

        class Handler(http.server.BaseHTTPRequestHandler):
            # HTTP/1.0 closes each connection, so the sink is unreachable as soon as it shuts down.
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        sink = http.server.ThreadingHTTPServer(("127.0.0.1", self.sink_port), Handler)
        threading.Thread(target=sink.serve_forever, daemon=True).start()
        return sink

    def expect(self, alert, fault):
        """Checks that the alert does not fire yet. Returns a function that waits until it does."""
        assert alert not in self.prometheus.firing(), f"{alert} fires before {fault}"
        return lambda: self.wait_for(alert, fault)

    def wait_for(self, alert, fault):
        started = time.monotonic()
        service.until(f"{alert} fires", lambda: alert in self.prometheus.firing(), ALERT_TIMEOUT)
        print(f"{alert} fires {time.monotonic() - started:.0f} s after {fault}")


def sink_unreachable_then_rejecting(run):
    takes_nothing = run.expect("CanvasSchedulerSinkTakesNothing", "the sink became unreachable")
    backlog = run.expect("CanvasSchedulerDueBacklog", "the sink became unreachable")
    lag = run.expect("CanvasSchedulerDispatchLag", "the sink came back and the backlog was delivered")
    dead = run.expect("CanvasSchedulerDeadLetters", "the sink began to reject dispatches")
    for n in range(40):
        run.create(f"due-{n}")
    takes_nothing()
    backlog()
    sink = run.sink(422)
    dead()
    lag()
    sink.shutdown()
    sink.server_close()


def commit_queue_full(run):
    full = run.expect("CanvasSchedulerCommitQueueFull", "updates exceeded the queue")
    schedules = [run.create(f"busy-{n}", timedelta(days=1)) for n in range(64)]
    stop = threading.Event()

    def update_repeatedly(created):
        while not stop.is_set():
            try:
                run.update(created.canvas_id, created.schedule_id)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error

    callers = [threading.Thread(target=update_repeatedly, args=(created,), daemon=True) for created in schedules]
    for caller in callers:
        caller.start()
    full()
    stop.set()
    for caller in callers:
        caller.join()


def clock_not_trusted(run):
    untrusted = run.expect("CanvasSchedulerClockNotTrusted", "the database's clock became erratic")
    jumps = "SELECT pg_catalog.clock_timestamp() + (random() * 3600) * interval '1 second'"
    run.postgres.sql(f"CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$ {jumps} $$")
    run.postgres.sql("ALTER DATABASE postgres SET search_path = public, pg_catalog")
    run.postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'canvas-scheduler%'")
    untrusted()
    run.postgres.sql("ALTER DATABASE postgres RESET search_path")
    run.postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'canvas-scheduler%'")


def database_away(run):
    away = run.expect("CanvasSchedulerDatabaseAway", "PostgreSQL stopped")
    run.postgres.stop()
    away()
    run.postgres.start()
    service.until("the server is ready after the restart of PostgreSQL", run.server.ready)


def traffic(run):
    """Causes traffic of every kind that the dashboard shows."""
    sink = run.sink(204)
    for n in range(5):
        created = run.create(f"traffic-{n}", timedelta(days=1))
        run.update(created.canvas_id, created.schedule_id)
        run.create(f"sent-{n}")
    try:
        run.update("unknown", "0190163d-8694-739b-aea5-966c26f8ad91")
        raise AssertionError("an unknown schedule was updated")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
    delivered = 'canvas_scheduler_dispatch_answers_total{answer="delivered"} >= 5'
    service.until("five dispatches are delivered", lambda: run.prometheus.query_api("query", query=delivered)["result"])
    sink.shutdown()
    sink.server_close()


def dashboard(run):
    panels = json.loads((CHART / "dashboard.json").read_text())["panels"]
    queries = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]
    variables = {"$namespace": "messaging", "$job": "schedules", "$__rate_interval": "30s"}
    empty = []
    for title, expression in queries:
        for variable, value in variables.items():
            expression = expression.replace(variable, value)
        if not run.prometheus.has_data(expression):
            empty.append((title, expression))
    print(f"{len(queries) - len(empty)} of {len(queries)} queries of the dashboard have data")
    assert not empty, empty


def main():
    with service.environment() as (folder, postgres):
        run = Run(folder, sys.argv[1], postgres)
        run.wait_for("CanvasSchedulerCertificateNearItsEnd", "a start with a certificate that expires in three days")
        for step in (traffic, sink_unreachable_then_rejecting, commit_queue_full, clock_not_trusted, database_away, dashboard):
            step(run)


main()
