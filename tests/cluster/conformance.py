"""Kubernetes' own end-to-end tests."""

import subprocess
import xml.etree.ElementTree as xml

from lab import BINARIES, STATE, Cluster, Failure
from nodes import enter

NETWORK = r"\[sig-network\].*\[Conformance\]"


def run(cluster: Cluster, focus: str = NETWORK, skip: list[str] | None = None, procs: int = 2) -> dict[str, list[tuple[str, float]]]:
    """Runs the tests whose names match. Returns names and seconds of those that passed and of those that failed."""
    reports = STATE / "reports"
    reports.mkdir(exist_ok=True)
    (reports / "junit.xml").unlink(missing_ok=True)
    command = [
        str(BINARIES / "ginkgo"), f"--procs={procs}", "--no-color", "--timeout=3h", f"--focus={focus}",
        *(f"--skip={expression}" for expression in skip or []), f"--output-dir={reports}", "--junit-report=junit.xml",
        str(BINARIES / "e2e.test"), "--", "--provider=local", f"--kubeconfig={STATE / 'admin.conf'}",
        f"--num-nodes={len(cluster.nodes)}", "--disable-log-dump",
    ]
    # In the API server's network, with the host's files.
    pid = cluster.nodes[cluster.control_plane]["pid"]
    with (reports / "output.log").open("w") as output:
        subprocess.run(enter(pid, *command, namespaces=("--net",)), stdout=output, stderr=subprocess.STDOUT)
    if not (reports / "junit.xml").exists():
        raise Failure(f"the tests did not run, see {reports}/output.log")
    results: dict[str, list[tuple[str, float]]] = {"passed": [], "failed": []}
    for case in xml.parse(reports / "junit.xml").iter("testcase"):
        kind, _, name = case.get("name", "").partition(" ")
        if kind == "[It]" and case.get("status") != "skipped":
            result = "passed" if case.get("status") == "passed" else "failed"
            results[result].append((name, float(case.get("time", 0))))
    return results
