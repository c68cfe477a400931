"""What the CNI plugins have to do on a cluster: ours, those of others, and one after the other."""

import filecmp
import json
import time
from pathlib import Path

import networks
from lab import BINARIES, CACHE, Cluster
from trials import check, pods_reach_each_other_and_services, wait_for
from workload import NAMESPACE, PORT, Workload, pod, url

OURS = CACHE / "flannel-cni"  # as the suite packed it
PORT_OF_NODE = 9090


def ports_of_nodes_lead_to_pods(cluster: Cluster, workload: Workload) -> str:
    node = list(cluster.nodes)[-1]
    published(workload, "published", node)
    asked = [url(address, PORT_OF_NODE) for address in cluster.nodes[node]["addresses"]]
    # From pods and hosts of both nodes; the node itself also at its loopback address, which IPv6 has no way from.
    for source in (f"{kind}-{each}" for each in cluster.nodes for kind in ("echo", "host")):
        answers = set(workload.ask(source, asked))
        check(answers == {"published"}, f"{source}: {asked} answer {answers}")
    check(workload.ask(f"host-{node}", [url("127.0.0.1", PORT_OF_NODE)]) == ["published"], "no answer at 127.0.0.1")
    remove(cluster, "published")
    check(silent(cluster, node), f"port {PORT_OF_NODE} of {node} still leads somewhere")
    return f"{len(asked)} addresses and 127.0.0.1"


def pods_outlive_an_exchange_of_plugins(cluster: Cluster, workload: Workload) -> str:
    """A pod that one side's plugins made is served on, and deleted by the other's, in both directions."""
    node = list(cluster.nodes)[-1]
    check(plugin(cluster, node) == "ours", f"the plugin is {plugin(cluster, node)}")
    for maker, other in (("ours", "theirs"), ("theirs", "ours")):
        published(workload, f"of-{maker}", node)
        [address, *_] = addresses = workload.addresses(f"of-{maker}")
        used = attachment(cluster, node, address)
        exchange(cluster, other)
        check(plugin(cluster, node) == other, f"the plugin is {plugin(cluster, node)}, not {other}")
        pods_reach_each_other_and_services(cluster, workload)
        asked = [url(address, PORT_OF_NODE) for address in cluster.nodes[node]["addresses"]]
        check(set(workload.ask(f"echo-{cluster.control_plane}", asked)) == {f"of-{maker}"}, f"{asked}")
        check(all(path.exists() for path in used), f"missing: {used}")
        remove(cluster, f"of-{maker}")
        wait_for(f"{other} to remove what {maker} made for {addresses}", 30, lambda: not any(path.exists() for path in used))
        check(silent(cluster, node), f"port {PORT_OF_NODE} of {node} still leads somewhere")
    return "in both directions"


def a_node_says_why_no_pod_can_start(cluster: Cluster, _workload: Workload) -> str:
    """containerd asks STATUS, and the kubelet tells what it was answered."""
    node = list(cluster.nodes)[-1]
    [daemon] = cluster.run(node, "pgrep", "-x", "flannel-node", text=True, capture_output=True).stdout.split()
    file = cluster.path(node, "/run/flannel/subnet.env")
    away = file.with_name("away.env")
    begin = time.monotonic()
    # It would write the file again.
    cluster.run(node, "kill", "-STOP", daemon)
    file.rename(away)
    try:
        wait_for(f"{node} not to be ready", 60, lambda: "subnet.env" in reason(cluster, node))
        message = reason(cluster, node)
    finally:
        away.rename(file)
        cluster.run(node, "kill", "-CONT", daemon)
    took = time.monotonic() - begin
    cluster.until("nodes that are ready", 60, cluster.all_ready)
    return f"after {took:.0f} s: {message}"


def reason(cluster: Cluster, node: str) -> str:
    """Why the kubelet takes its node for not ready; empty if it is ready."""
    status = json.loads(cluster.kubectl("get", "node", node, "-o", "json"))["status"]
    [condition] = [condition for condition in status["conditions"] if condition["type"] == "Ready"]
    return "" if condition["status"] == "True" else condition["message"]


def published(workload: Workload, name: str, node: str) -> None:
    """Makes a pod that has a port of its node."""
    document = pod(name, node, {"app": name})
    [container] = document["spec"]["containers"]
    container["ports"] = [{"containerPort": PORT, "hostPort": PORT_OF_NODE}]
    workload.apply(document)
    workload.wait()


def remove(cluster: Cluster, name: str) -> None:
    cluster.kubectl("delete", "pod", name, "-n", NAMESPACE, "--timeout=60s")


def silent(cluster: Cluster, node: str) -> bool:
    """Whether nothing answers at the node's port."""
    asked = [url(address, PORT_OF_NODE) for address in cluster.nodes[node]["addresses"]]
    return all(cluster.run(node, "curl", "-sg", "--max-time", "2", each, check=False, capture_output=True).returncode != 0 for each in asked)


def attachment(cluster: Cluster, node: str, address: str) -> list[Path]:
    """The files that plugins keep for the pod with this address."""
    file = cluster.path(node, f"/var/lib/cni/networks/cbr0/{address}")
    container = file.read_text().split()[0]
    return [file, cluster.path(node, f"/var/lib/cni/flannel/{container}")]


def plugin(cluster: Cluster, node: str) -> str:
    """Whose plugin containerd runs."""
    installed = cluster.path(node, "/opt/cni/bin/flannel")
    known = {"ours": OURS, "theirs": BINARIES / "flannel-cni"}
    [found] = [side for side, program in known.items() if filecmp.cmp(installed, program, shallow=False)] or ["another"]
    return found


def exchange(cluster: Cluster, side: str) -> None:
    """Has all nodes use the plugins of one side."""
    networks.apply(cluster, "flannel-node" if side == "ours" else "flannel", all_plugins=True)
    if side == "theirs":
        for node in cluster.nodes:
            cluster.give_plugins(node)
