"""Runs an image as Kubernetes would: read-only, unprivileged, without capabilities, configured by variables. Sends SIGTERM under load.

Calls may fail only with UNAVAILABLE, and the next container must have every acknowledged update. Needs docker (DOCKER_HOST) and the
host's network. Usage: image.py IMAGE
"""

import subprocess
import sys
import threading
import time

import grpc

import load
import service

CALLERS = 16
# Seconds of load before SIGTERM.
LOAD_SECONDS = 3


def docker(*args):
    done = subprocess.run(["docker", *args], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Container:
    def __init__(self, image, postgres):
        self.port, self.admin_port = service.free_port(), service.free_port()
        self.options = ["--network=host", "--read-only", "--user=65532:65532", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        # As the chart does, pass the parts of the database's URL separately.
        variables = {"PGHOST": "127.0.0.1", "PGPORT": postgres.port, "PGUSER": "postgres", "PGPASSWORD": "p@ss/w:rd", "PGDATABASE": "postgres"}
        variables |= {"DATABASE_URL": "postgres://?sslmode=prefer", "GRPC_ADDR": f"127.0.0.1:{self.port}", "ADMIN_ADDR": f"127.0.0.1:{self.admin_port}"}
        variables |= {"GATEWAY": "off", "REVISIONS_KEPT": 1000000000, "SINK": "log"}
        for name, value in variables.items():
            self.options += ["--env", f"{name if name.startswith('PG') else 'CANVAS_SCHEDULER_' + name}={value}"]
        self.image, self.id = image, ""

    def run(self, *args):
        return docker("run", "--rm", *self.options, self.image, *args)

    def start(self):
        self.id = docker("run", "--detach", *self.options, self.image)
        service.until("ready", lambda: service.get(f"http://127.0.0.1:{self.admin_port}/readyz")[0] == 200)

    def exec(self, *args):
        return docker("exec", self.id, "/canvas-scheduler", *args)

    def terminate(self):
        """Sends SIGTERM, checks for exit code 0, and returns how many seconds the process took to exit."""
        started = time.monotonic()
        docker("kill", "--signal=TERM", self.id)
        code = docker("wait", self.id)
        assert code == "0", docker("logs", self.id)
        return time.monotonic() - started

    def remove(self):
        subprocess.run(["docker", "rm", "--force", self.id], capture_output=True)


def run(image, folder, postgres, container):
    api = service.api(folder)
    container.run("migrate")
    container.start()
    container.exec("healthcheck")
    container.exec("workspace", "set", "default", "--requests", "1000000000/hour", "--broadcasts", "1000000000/minute")
    key = container.exec("api-key", "create", "--name", "run", "--permissions", "all")
    # Without retries, so that the test sees every status.
    stub = api[2](grpc.insecure_channel(f"127.0.0.1:{container.port}", [("grpc.enable_retries", 0)]))
    stop = threading.Event()
    callers = [load.Caller(n, api, stub, [("authorization", f"Bearer {key}")], stop) for n in range(CALLERS)]
    for caller in callers:
        caller.start()
    service.until("load", lambda: all(len(caller.acknowledged) > 10 for caller in callers))
    time.sleep(LOAD_SECONDS)
    took = container.terminate()
    stop.set()
    load.join(callers)
    container.remove()
    container.start()
    failed, lost = load.failed(callers), [lost for caller in callers for lost in caller.lost()]
    acknowledged = sum(len(caller.acknowledged) for caller in callers)
    print(f"the server exited {took:.2f} s after SIGTERM; {acknowledged} updates acknowledged, {len(lost)} lost; failed: {dict(failed)}")
    assert not lost and set(failed) <= {"UNAVAILABLE"}, (failed, lost[:10])


with service.environment() as (folder, postgres):
    container = Container(sys.argv[1], postgres)
    try:
        run(sys.argv[1], folder, postgres, container)
    finally:
        container.remove()
