"""Restarts two replicas in turn under load, behind one gRPC channel with round robin and a standard retry policy.

No call may fail, and the history must contain every acknowledged update. Usage: rolling.py BINARY
"""

import sys
import threading
import time

import load
import service

CALLERS = 16
ROUNDS = 3
# Seconds of load before each restart.
INTERVAL = 2


def run(binary, folder, postgres):
    api = service.api(folder)
    app = service.Service(binary, postgres.url)
    key = app.key()
    flags = ["--revisions-kept", "1000000000", "--roles", "api"]
    servers = [service.Server(app, folder / f"{n}.log", *flags) for n in range(2)]
    stub = api[2](service.channel([f"127.0.0.1:{server.port}" for server in servers]))
    metadata = [("authorization", f"Bearer {key}")]
    stop = threading.Event()
    callers = [load.Caller(n, api, stub, metadata, stop) for n in range(CALLERS)]
    for caller in callers:
        caller.start()
    for _ in range(ROUNDS):
        for n, server in enumerate(servers):
            time.sleep(INTERVAL)
            took = server.terminate()
            server.start()
            print(f"replica {n} restarted; it exited {took:.2f} s after SIGTERM")
    time.sleep(INTERVAL)
    stop.set()
    load.join(callers)
    check(callers, servers)


def check(callers, servers):
    failed = load.failed(callers)
    acknowledged = sum(len(caller.acknowledged) for caller in callers)
    for n, server in enumerate(servers):
        _, metrics = service.get(f"http://127.0.0.1:{server.admin_port}/metrics")
        samples = [line for line in metrics.splitlines() if line.startswith("rpc_server_call_duration_seconds_count")]
        updates = [float(line.split()[-1]) for line in samples if "/UpdateCanvasSchedule" in line and '"OK"' in line]
        assert sum(updates) > 0, f"replica {n} served no call after its last restart"
    lost = [lost for caller in callers for lost in caller.lost()]
    longest = max(caller.longest for caller in callers)
    print(f"{acknowledged} updates acknowledged by {CALLERS} callers over {2 * ROUNDS} restarts, {failed.total()} failed, {len(lost)} lost;")
    print(f"the slowest call took {longest:.2f} s")
    assert acknowledged > 100 * ROUNDS and not failed and not lost, (failed, lost[:10])


with service.environment() as (folder, postgres):
    run(sys.argv[1], folder, postgres)
