"""Restarts two replicas in turn under load, behind one gRPC channel with round robin and a standard retry policy.

No call may fail, and every update that was acknowledged must stand in the history as it was told. Usage: rolling.py BINARY
"""

import sys
import threading
import time

import load
import service

CALLERS = 16
ROUNDS = 3
BETWEEN = 2


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
            time.sleep(BETWEEN)
            took = server.terminate()
            server.start()
            print(f"replica {n} restarted; it ended {took:.2f} s after SIGTERM")
    time.sleep(BETWEEN)
    stop.set()
    load.join(callers)
    tell(callers, servers)


def tell(callers, servers):
    failed = load.failed(callers)
    told = sum(len(caller.told) for caller in callers)
    for n, server in enumerate(servers):
        _, metrics = service.get(f"http://127.0.0.1:{server.admin_port}/metrics")
        samples = [line for line in metrics.splitlines() if line.startswith("rpc_server_call_duration_seconds_count")]
        updates = [float(line.split()[-1]) for line in samples if "/UpdateCanvasSchedule" in line and '"OK"' in line]
        assert sum(updates) > 0, f"replica {n} took no call after its last restart"
    lost = [lost for caller in callers for lost in caller.lost()]
    longest = max(caller.longest for caller in callers)
    print(f"{told} updates acknowledged by {CALLERS} callers over {2 * ROUNDS} restarts, {failed.total()} failed, {len(lost)} lost;")
    print(f"the slowest took {longest:.2f} s")
    assert told > 100 * ROUNDS and not failed and not lost, (failed, lost[:10])


with service.a_run() as (folder, postgres):
    run(sys.argv[1], folder, postgres)
