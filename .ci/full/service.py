"""PostgreSQL, the service as processes, and its API in grpcio, shared by the scripts in this folder."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
POSTGRES = pathlib.Path("/usr/lib/postgresql/15/bin")
# Seconds that a step may take.
TIMEOUT = 30


def api(folder):
    """Generates the modules of the API into a folder. Returns its messages, its requests and its stub."""
    protos = ROOT / "proto"
    files = [str(file) for file in protos.glob("canvas/schedule/v1/*.proto")]
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{protos}", f"-I{well_known}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]
    assert protoc.main(arguments) == 0, "the protos do not compile"
    sys.path.insert(0, str(folder))
    from canvas.schedule.v1 import canvas_schedule_pb2, canvas_schedule_service_pb2, canvas_schedule_service_pb2_grpc

    return canvas_schedule_pb2, canvas_schedule_service_pb2, canvas_schedule_service_pb2_grpc.CanvasScheduleServiceStub


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, condition, timeout=TIMEOUT):
    """Waits until the condition returns a true value, and returns that value."""
    started = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - started < timeout, f"{what}: not within {timeout} s"
        time.sleep(0.1)
    return value


def get(url):
    """Returns the status and the body of a GET, or status 0 if there is no response."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


# Processes that `environment` kills at its end.
processes = []


@contextlib.contextmanager
def environment():
    """Provides a temporary folder and a PostgreSQL server; removes them, and all processes, at the end."""
    with tempfile.TemporaryDirectory() as folder:
        postgres = Postgres()
        try:
            yield pathlib.Path(folder), postgres
        finally:
            for process in processes:
                process.kill()
                process.wait()
            postgres.remove()


class Postgres:
    """A temporary PostgreSQL server with one database."""

    def __init__(self):
        self.port = free_port()
        self.folder = tempfile.mkdtemp()
        # PostgreSQL refuses to run as root.
        self.user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        if self.user:
            shutil.chown(self.folder, "postgres", "postgres")
        self.run("initdb", "-D", f"{self.folder}/data", "-A", "trust", "-U", "postgres")
        self.start()

    def run(self, program, *args):
        done = subprocess.run([*self.user, POSTGRES / program, *args], cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self):
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-w", "-o", settings, "start")

    def stop(self):
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-m", "fast", "-w", "stop")

    def sql(self, statement):
        return self.run("psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement)

    @property
    def url(self):
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    def remove(self):
        subprocess.run([*self.user, POSTGRES / "pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "stop"], stdout=subprocess.DEVNULL)
        shutil.rmtree(self.folder)


class Service:
    """The binary and its database."""

    def __init__(self, binary, database):
        self.binary, self.url = str(pathlib.Path(binary).resolve()), database
        self.command("migrate")

    def command(self, *args):
        done = subprocess.run([self.binary, *args, "--database-url", self.url], text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def key(self):
        """Creates a key with all permissions, in a workspace with a quota that is never reached."""
        self.command("workspace", "set", "default", "--requests", "1000000000/hour", "--broadcasts", "1000000000/minute")
        return self.command("api-key", "create", "--name", "run", "--permissions", "all")


class Server:
    """A server process. It keeps its ports over restarts."""

    def __init__(self, service, log, *flags):
        self.port, self.admin_port = free_port(), free_port()
        self.command = [service.binary, "serve", "--database-url", service.url, "--grpc-addr", f"127.0.0.1:{self.port}"]
        self.command += ["--admin-addr", f"127.0.0.1:{self.admin_port}", "--gateway", "off", *flags]
        self.log = open(log, "ab")
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        processes.append(self.process)
        until(f"ready on {self.admin_port}", self.ready)

    def ready(self):
        assert self.process.poll() is None, f"the server exited with {self.process.returncode}"
        return get(f"http://127.0.0.1:{self.admin_port}/readyz")[0] == 200

    def terminate(self):
        """Sends SIGTERM, as Kubernetes does. Returns how many seconds the process took to exit."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=TIMEOUT)
        assert code == 0, f"the server exited with {code}"
        return time.monotonic() - started


def channel(addresses, credentials=None):
    """One channel over all addresses, with the retry policy of gRPC's documentation."""
    policy = {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}
    config = {"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{"name": [{}], "retryPolicy": policy}]}
    target = "ipv4:" + ",".join(addresses)
    options = [("grpc.service_config", json.dumps(config)), ("grpc.enable_retries", 1), ("grpc.default_authority", "localhost")]
    return grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
