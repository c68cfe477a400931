#!/usr/bin/python3
"""Records what a real API server answers, for tests that replay it: record.py [FOLDER WITH kube-apiserver AND etcd].

Both programs are those of tests/cluster. They run in a network namespace without anything else, on made-up Nodes, so that nothing of this
machine gets into the recordings. Each is a file: the request, an empty line, the status with the headers that matter, an empty line, the body,
which is in base64 if it is protobuf.
"""

import base64
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = Path(sys.argv[1] if len(sys.argv) > 1 else Path.home() / ".cache/flannel-cluster/bin")
ADDRESS = "192.0.2.1"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
PROTOBUF = "application/vnd.kubernetes.protobuf"
PROTOBUF_METADATA = f"{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
MERGE = "application/strategic-merge-patch+json"
KEPT_HEADERS = ("content-type", "content-encoding", "retry-after")
# Good for these servers alone, which nobody else can reach.
ADMIN, NOBODY = "admin", "nobody"
FLANNEL = "flannel.alpha.coreos.com/"


class Servers:
    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "tokens.csv").write_text(f"{ADMIN},admin,1,system:masters\n{NOBODY},nobody,2,\n")
        subprocess.run(["openssl", "genrsa", "-out", folder / "accounts.key", "2048"], check=True, capture_output=True)
        self.etcd = self.start("etcd", f"--data-dir={folder}/etcd", "--unsafe-no-fsync")
        self.apiserver = None

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        log = open(self.folder / f"{name}.log", "a")
        return subprocess.Popen([PROGRAMS / name, *arguments], stdout=log, stderr=log)

    def start_apiserver(self, *more: str) -> None:
        folder = self.folder
        self.apiserver = self.start(
            "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", f"--bind-address={ADDRESS}", f"--advertise-address={ADDRESS}",
            f"--cert-dir={folder}/pki", f"--token-auth-file={folder}/tokens.csv", "--authorization-mode=RBAC",
            f"--service-account-key-file={folder}/accounts.key", f"--service-account-signing-key-file={folder}/accounts.key",
            "--service-account-issuer=https://recordings.example", "--service-cluster-ip-range=10.96.0.0/16", *more)
        until("API server", lambda: ask("GET", "/readyz")[0] == 200)

    def stop_apiserver(self) -> None:
        self.apiserver.terminate()
        self.apiserver.wait()

    def stop(self) -> None:
        self.stop_apiserver()
        self.etcd.terminate()
        self.etcd.wait()


def until(what: str, condition) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        if time.monotonic() > end:
            sys.exit(f"record.py: no {what} after two minutes")
        time.sleep(0.2)


def ask(method: str, path: str, body=None, accept="application/json", kind="application/json", agent="kubelet", token=ADMIN):
    """Status, headers and body of an answer."""
    context = ssl.create_default_context()
    # It signs its own certificate, of names that are not ours.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(ADDRESS, 6443, context=context, timeout=60)
    headers = {"Accept": accept, "User-Agent": agent, "Authorization": f"Bearer {token}"}
    if body is not None:
        headers["Content-Type"] = kind
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    kept = [f"{name}: {value}" for name, value in answer.getheaders() if name.lower() in KEPT_HEADERS]
    said = answer.read()
    is_protobuf = (answer.getheader("content-type") or "").startswith(PROTOBUF)
    said = base64.encodebytes(said).decode() if is_protobuf else said.decode()
    connection.close()
    return answer.status, kept, said


def record(name: str, method: str, path: str, accept="application/json", **options) -> str:
    """Asks and keeps question and answer; returns the body."""
    status, headers, said = ask(method, path, accept=accept, **options)
    question = [f"{method} {path}", f"Accept: {accept}"]
    if options.get("body") is not None:
        question += ["", json.dumps(options["body"])]
    text = "\n".join(question) + "\n\n" + "\n".join([str(status), *headers]) + "\n\n" + said
    (HERE / f"{name}.http").write_text(text)
    print(f"{name}: {status}, {len(said)} bytes")
    return said


def watch(version: str, seconds: int, *more: str) -> str:
    options = ["watch=true", "allowWatchBookmarks=true", f"resourceVersion={version}", f"timeoutSeconds={seconds}", *more]
    return "/api/v1/nodes?" + "&".join(options)


def node(name: str) -> dict:
    labels = {"kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {
        "name": name, "labels": labels, "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}}


def register(number: int) -> None:
    """What kubelet, controller-manager and flannel do."""
    name = f"n{number}"
    ask("POST", "/api/v1/nodes", node(name))
    subnet = f"10.244.{number}.0/24"
    ask("PATCH", f"/api/v1/nodes/{name}", {"spec": {"podCIDR": subnet, "podCIDRs": [subnet]}}, kind=MERGE, agent="kube-controller-manager")
    ask("PATCH", f"/api/v1/nodes/{name}/status", published(number), kind=MERGE, agent="flanneld")
    heartbeat(name, 0)


def published(number: int) -> dict:
    annotations = {
        "kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": f"192.0.2.{number}",
        "backend-data": json.dumps({"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"}, separators=(",", ":")),
    }
    return {"metadata": {"annotations": {FLANNEL + key: value for key, value in annotations.items()}}}


def heartbeat(name: str, second: int) -> None:
    now = f"2026-01-01T00:00:{second:02}Z"
    condition = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
                 "lastHeartbeatTime": now, "lastTransitionTime": "2026-01-01T00:00:00Z"}
    image = {"names": ["registry.example.com/service:v1"], "sizeBytes": 1000}
    ask("PATCH", f"/api/v1/nodes/{name}/status", {"status": {"conditions": [condition], "images": [image]}}, kind=MERGE)


def changes() -> None:
    """What happens while a watch is recorded."""
    time.sleep(1)
    heartbeat("n1", 10)
    register(4)
    ask("PATCH", "/api/v1/nodes/n2/status", {"metadata": {"annotations": {FLANNEL + "public-ip": "192.0.2.22"}}}, kind=MERGE, agent="flanneld")
    ask("DELETE", "/api/v1/nodes/n3")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        servers = Servers(Path(folder))
        try:
            servers.start_apiserver()
            record_all(servers)
        finally:
            servers.stop()


def record_all(servers: Servers) -> None:
    for number in (1, 2, 3):
        register(number)
    record("get", "GET", "/api/v1/nodes/n1")
    page = json.loads(record("list-page-1", "GET", "/api/v1/nodes?limit=2"))
    token, version = page["metadata"]["continue"], page["metadata"]["resourceVersion"]
    record("list-page-2", "GET", f"/api/v1/nodes?limit=2&continue={token}")
    initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    record("watch-list", "GET", f"/api/v1/nodes?watch=true&allowWatchBookmarks=true&{initial}&timeoutSeconds=2")
    record("watch-list-protobuf", "GET", f"/api/v1/nodes?watch=true&allowWatchBookmarks=true&{initial}&timeoutSeconds=2", PROTOBUF)
    changing = threading.Thread(target=changes)
    changing.start()
    # A server sends a bookmark two seconds before it ends a watch.
    record("watch-metadata", "GET", watch(version, 8), METADATA)
    changing.join()
    record("watch-metadata-protobuf", "GET", watch(version, 3), PROTOBUF_METADATA)
    record("patch", "PATCH", "/api/v1/nodes/n1/status", body=published(1), kind=MERGE, agent="flanneld")
    record("not-found", "GET", "/api/v1/nodes/nobody")
    record("already-exists", "POST", "/api/v1/nodes", body=node("n1"))
    record("unauthorized", "GET", "/api/v1/nodes/n1", token="wrong")
    record("forbidden", "GET", "/api/v1/nodes/n1", token=NOBODY)
    record("watch-from-the-future", "GET", watch("999999999", 5))
    record("list-from-the-future", "GET", "/api/v1/nodes?resourceVersion=999999999&resourceVersionMatch=NotOlderThan")
    compact = json.dumps({"revision": json.loads(ask("GET", "/api/v1/nodes")[2])["metadata"]["resourceVersion"], "physical": True})
    subprocess.run(["curl", "-sSf", "-o", "/dev/null", "-d", compact, "http://127.0.0.1:2379/v3/kv/compaction"], check=True)
    servers.stop_apiserver()
    servers.start_apiserver("--feature-gates=WatchList=false")
    # What was before its start is not in its cache, and in etcd no more.
    record("list-expired", "GET", f"/api/v1/nodes?limit=2&continue={token}")
    record("watch-expired", "GET", watch("1", 5))
    record("watch-expired-protobuf", "GET", watch("1", 5), PROTOBUF)
    record("watch-list-refused", "GET", f"/api/v1/nodes?watch=true&allowWatchBookmarks=true&{initial}&timeoutSeconds=2")


if __name__ == "__main__":
    if os.environ.get("RECORDING") is None:
        inside = f"ip link set lo up && ip address add {ADDRESS}/32 dev lo && exec \"$@\""
        os.environ["RECORDING"] = "1"
        os.execvp("unshare", ["unshare", "--net", "--map-root-user", "sh", "-c", inside, "sh", sys.executable, *sys.argv])
    main()
