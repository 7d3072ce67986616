"""Prometheus over a live server: every query of the dashboard has data, and each alert fires by a fault that causes it, and not before.

The alerts are those of the chart, but for how long they wait. Needs prometheus and openssl. Usage: alerts.py BINARY
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
# The longest that an alert needs: what is due must have waited for a minute.
FIRES_WITHIN = 120


class Prometheus:
    """It scrapes one server once a second, and evaluates the chart's alerts as often."""

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
        self.began = time.time()

    def ask(self, path, **query):
        status, body = service.get(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}")
        assert status == 200, body
        return json.loads(body)["data"]

    def firing(self):
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def has_data(self, expression):
        """Whether the expression had a value at any time since the start."""
        found = self.ask("query_range", query=expression, start=self.began, end=time.time(), step=5)["result"]
        return any(math.isfinite(float(value)) for series in found for _, value in series["values"])


class Run:
    """What the faults need."""

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
        """A sink that answers everything with this status."""

        class Handler(http.server.BaseHTTPRequestHandler):
            # As HTTP/1.0, which keeps no connection: when the sink is gone, it is gone.
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

    def fires(self, alert, fault):
        assert alert not in self.prometheus.firing(), f"{alert} fires before {fault}"
        return lambda: self.told(alert, fault)

    def told(self, alert, fault):
        began = time.monotonic()
        service.until(f"{alert} fires", lambda: alert in self.prometheus.firing(), FIRES_WITHIN)
        print(f"{alert} fires {time.monotonic() - began:.0f} s after {fault}")


def a_sink_that_is_gone_and_then_refuses(run):
    nothing = run.fires("CanvasSchedulerSinkTakesNothing", "the sink is gone")
    backlog = run.fires("CanvasSchedulerDueBacklog", "the sink is gone")
    lag = run.fires("CanvasSchedulerDispatchLag", "the sink is back, and what was due is sent")
    dead = run.fires("CanvasSchedulerDeadLetters", "the sink refuses what it gets")
    for n in range(40):
        run.create(f"due-{n}")
    nothing()
    backlog()
    sink = run.sink(422)
    dead()
    lag()
    sink.shutdown()
    sink.server_close()


def commit_queue_full(run):
    full = run.fires("CanvasSchedulerCommitQueueFull", "more changes come than there is room for")
    schedules = [run.create(f"busy-{n}", timedelta(days=1)) for n in range(64)]
    stop = threading.Event()

    def hammer(one):
        while not stop.is_set():
            try:
                run.update(one.canvas_id, one.schedule_id)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error

    callers = [threading.Thread(target=hammer, args=(one,), daemon=True) for one in schedules]
    for caller in callers:
        caller.start()
    full()
    stop.set()
    for caller in callers:
        caller.join()


def clock_not_trusted(run):
    untrusted = run.fires("CanvasSchedulerClockNotTrusted", "the database's clock jumps from look to look")
    jumps = "SELECT pg_catalog.clock_timestamp() + (random() * 3600) * interval '1 second'"
    run.postgres.sql(f"CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$ {jumps} $$")
    run.postgres.sql("ALTER DATABASE postgres SET search_path = public, pg_catalog")
    run.postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'canvas-scheduler%'")
    untrusted()
    run.postgres.sql("ALTER DATABASE postgres RESET search_path")
    run.postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'canvas-scheduler%'")


def database_away(run):
    away = run.fires("CanvasSchedulerDatabaseAway", "PostgreSQL is stopped")
    run.postgres.stop()
    away()
    run.postgres.start()
    service.until("the database is seen again", run.server.ready)


def traffic(run):
    """Of every kind that the dashboard shows."""
    sink = run.sink(204)
    for n in range(5):
        created = run.create(f"traffic-{n}", timedelta(days=1))
        run.update(created.canvas_id, created.schedule_id)
        run.create(f"sent-{n}")
    try:
        run.update("nobody", "0190163d-8694-739b-aea5-966c26f8ad91")
        raise AssertionError("an unknown schedule was updated")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
    delivered = 'canvas_scheduler_dispatch_answers_total{answer="delivered"} >= 5'
    service.until("five dispatches are delivered", lambda: run.prometheus.ask("query", query=delivered)["result"])
    sink.shutdown()
    sink.server_close()


def dashboard(run):
    panels = json.loads((CHART / "dashboard.json").read_text())["panels"]
    queries = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]
    filled = {"$namespace": "messaging", "$job": "schedules", "$__rate_interval": "30s"}
    empty = []
    for title, expression in queries:
        for variable, value in filled.items():
            expression = expression.replace(variable, value)
        if not run.prometheus.has_data(expression):
            empty.append((title, expression))
    print(f"{len(queries) - len(empty)} of {len(queries)} queries of the dashboard have data")
    assert not empty, empty


def main():
    with service.a_run() as (folder, postgres):
        run = Run(folder, sys.argv[1], postgres)
        run.told("CanvasSchedulerCertificateNearItsEnd", "a start with a certificate that is good for three days")
        for step in (traffic, a_sink_that_is_gone_and_then_refuses, commit_queue_full, clock_not_trusted, database_away, dashboard):
            step(run)


main()
