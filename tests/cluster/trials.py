"""What has to work on a cluster whose network is deployed by the shipped manifest. Each trial says in a sentence what holds."""

import json
import os
import subprocess
import time
from pathlib import Path

import audit
import networks
import pings
from cluster import add_node
from lab import CACHE, STATE, Cluster, Failure
from networks import DAEMON_SET, NAMESPACE
from nodes import enter
from workload import HOST_PORT, NODE_PORT, PORT, Workload, url

OUR_AGENT = "flannel-kube"
PLUGIN = CACHE / "plugin/kubectl-flannel"  # where the suite put it
BACKEND_TYPE, BACKEND_DATA, SECOND_BACKEND = (f"{networks.ANNOTATIONS}/{key}" for key in ("backend-type", "backend-data", "second-backend"))


def check(condition: bool, what: str) -> None:
    if not condition:
        raise Failure(what)


def none_lost(results: list[dict]) -> str:
    text = pings.describe(results)
    check(bool(results) and all(result["lost"] == 0 and result["sent"] > 0 for result in results), text)
    return text


def pods_reach_each_other_and_services(cluster: Cluster, workload: Workload) -> str:
    large = "x" * 6000  # more than a packet, so that the MTU counts
    expected: dict[str, str] = {}
    for node, facts in cluster.nodes.items():
        for address in workload.addresses(f"echo-{node}"):
            expected[url(address, PORT)] = f"echo-{node}"
            expected[url(address, PORT, f"echo?msg={large}")] = large
        expected |= {url(address, HOST_PORT): node for address in facts["addresses"]}
    node_ports = [url(address, NODE_PORT) for facts in cluster.nodes.values() for address in facts["addresses"]]
    services = [url(address, 80) for address in workload.service_addresses()]
    pods = {f"echo-{node}" for node in cluster.nodes}
    sources = [f"{kind}-{node}" for node in cluster.nodes for kind in ("echo", "host")]
    for source in sources:
        for (asked, answer), got in zip(expected.items(), workload.ask(source, list(expected))):
            check(got == answer, f"{source}: {asked[:60]} answers {got[:60]}")
        for asked in services + node_ports:
            answers = set(workload.ask(source, [asked] * 20))
            check(answers <= pods and len(answers) > 1, f"{source}: the pods behind {asked} are {answers}")
    return f"{len(sources) * (len(expected) + 20 * len(services + node_ports))} requests"


def pods_see_each_others_addresses(cluster: Cluster, workload: Workload) -> str:
    first, second = list(cluster.nodes)[:2]
    for own, peer in zip(workload.addresses(f"echo-{first}"), workload.addresses(f"echo-{second}")):
        [seen] = workload.ask(f"echo-{first}", [url(peer, PORT, "clientip")])
        seen = seen.rpartition(":")[0].strip("[]")
        check(seen == own, f"{second} sees {seen} in place of {own}")
    return "no masquerading between pods"


def a_path_is_explained_in_a_pod_of_the_network(cluster: Cluster, workload: Workload) -> str:
    first, second = list(cluster.nodes)[:2]
    [pod] = [each for each in cluster.objects("pods", "-n", NAMESPACE) if each["spec"]["nodeName"] == first]
    command = ["exec", pod["metadata"]["name"], "-n", NAMESPACE, "-c", "kube-flannel", "--", "/flannel-node", "explain", "--kube-subnet-mgr"]
    ends = list(zip(workload.addresses(f"echo-{first}"), workload.addresses(f"echo-{second}")))
    for source, destination in ends:
        said = cluster.kubectl(*command, source, destination)
        check("reach each other" in said, said)
    return f"in {len(ends)} families"


def kubectl_flannel_asks_all_nodes(cluster: Cluster, _workload: Workload) -> str:
    """As operators call it, through kubectl and the API server's proxy."""
    first, second = list(cluster.nodes)[:2]
    networks.give_argument(cluster, "--healthz-explain")
    try:
        head, *rows = plugin(cluster, "status").splitlines()
        ready = head.split().index("READY")
        check(len(rows) == len(cluster.nodes) and {row.split()[ready] for row in rows} == {"yes"}, "\n".join([head, *rows]))
        paths = {f"echo-{second}": 2, "svc/echo": 2 * len(cluster.nodes) - 1}  # the node at each end, once
        for destination, views in paths.items():
            said = plugin(cluster, "explain", f"echo-{first}", destination, "-n", "default")
            check(said.count("reach each other") == views * len(cluster.families), said)
        measured = plugin(cluster, "bench", first, second, "--seconds", "1")
        left = [pod["metadata"]["name"] for pod in cluster.objects("pods", "-n", NAMESPACE, "-l", "app=flannel-bench")]
        check(not left, f"pods are left: {left}")
    finally:
        networks.apply(cluster, "flannel-node")
    return f"{len(rows)} nodes, {' '.join(measured.split())}"


def plugin(cluster: Cluster, *arguments: str) -> str:
    """What `kubectl flannel` says: kubectl finds the program by the name that the suite gave it."""
    command = enter(cluster.nodes[cluster.control_plane]["pid"], "kubectl", "flannel", *arguments, namespaces=("--net",))
    variables = {"PATH": f"{PLUGIN.parent}:{os.environ['PATH']}", "KUBECONFIG": str(STATE / "admin.conf")}
    result = subprocess.run(command, text=True, capture_output=True, env=os.environ | variables)
    check(result.returncode == 0, f"kubectl flannel {' '.join(arguments)} ended with {result.returncode}: {result.stderr}{result.stdout}")
    return result.stdout


def programs_carry_packets_on_all_nodes(cluster: Cluster, _workload: Workload) -> str:
    """With CAP_NET_ADMIN and CAP_BPF, and after others have sent packets."""
    return carry_packets(cluster, "ebpf", 1 << 12 | 1 << 39)


def threads_carry_packets_on_all_nodes(cluster: Cluster, _workload: Workload) -> str:
    """With CAP_NET_ADMIN alone."""
    return carry_packets(cluster, "userspace", 1 << 12)


def carry_packets(cluster: Cluster, engine: str, rights: int) -> str:
    said = []
    for node, pod in networks.pods(cluster).items():
        command = ["exec", pod["metadata"]["name"], "-n", NAMESPACE, "-c", "kube-flannel", "--", "/flannel-node", "status", "--json"]
        report = json.loads(cluster.kubectl(*command))["backend_report"]
        properties, by_ebpf = report["properties"], report["counters"]["packets_by_ebpf"]
        check(properties["engine"] == engine and (by_ebpf > 0) == (engine == "ebpf"), f"{node}: {report}")
        status = cluster.run(node, "cat", f"/proc/{network_process(cluster, node)}/status", text=True, capture_output=True).stdout
        [effective] = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")]
        check(effective == rights, f"{node} has the capabilities {effective:x}")
        said.append(f"{by_ebpf} packets by programs on {node}, self-test: {properties.get('self_test', 'none')}")
    check(len(said) == len(cluster.nodes), f"{len(said)} pods of the network")
    return f"{engine}, capabilities {rights:x}; " + "; ".join(said)


def a_node_joins_is_drained_and_deleted(cluster: Cluster, workload: Workload) -> str:
    first = cluster.control_plane
    with pings.running(workload.flows()) as lost:
        name, ready = join(cluster, workload)
        answers = workload.ask(f"echo-{first}", [url(address, PORT) for address in workload.addresses(f"echo-{name}")])
        check(set(answers) == {f"echo-{name}"}, f"the new node's pod answers {answers}")
        subnets = json.loads(cluster.kubectl("get", "node", name, "-o", "json"))["spec"]["podCIDRs"]
        for subnet in subnets:
            check(bool(routes(cluster, first, subnet)), f"no route to {subnet}")
        leave(cluster, name)
        begin = time.monotonic()
        cluster.until("routes to be gone", 30, lambda: not any(routes(cluster, first, subnet) for subnet in subnets))
        gone = time.monotonic() - begin
    return f"ready {ready:.1f} s after it was turned on, routes gone {gone:.1f} s after it was deleted; {none_lost(lost)}"


def a_node_object_is_made_anew_and_gets_other_subnets(cluster: Cluster, workload: Workload) -> str:
    """As after a mistaken `kubectl delete node`. Pods that run keep their addresses, which are nobody's any more; new ones have to work.

    Pods of other nodes notice nothing."""
    with pings.running(workload.flows()) as lost:
        node, _ = join(cluster, workload)
        before = subnets_of(cluster, node)
        cluster.kubectl("delete", "node", node)
        # A kubelet registers its node when it starts.
        cluster.restart(node, "kubelet")
        cluster.until("other subnets", 120, lambda: (subnets_of(cluster, node) or before) != before)
        begin = time.monotonic()
        cluster.until("nodes that are ready", 180, cluster.all_ready)
        check_ready(cluster)
        for name in (f"echo-{node}", f"host-{node}"):
            cluster.kubectl("delete", "pod", name, "-n", "default", "--ignore-not-found", "--grace-period=1")
        workload.add_to(node)
        workload.wait()
        took = time.monotonic() - begin
        reached = pods_reach_each_other_and_services(cluster, workload)
        for subnet in before:
            check(not routes(cluster, cluster.control_plane, subnet), f"a route to {subnet} is left")
        leave(cluster, node)
    return f"pods {took:.1f} s after it had another subnet; {reached}; {none_lost(lost)}"


def join(cluster: Cluster, workload: Workload) -> tuple[str, float]:
    """Adds a node with its pods: its name, and the seconds until it was ready."""
    begin = time.monotonic()
    name = add_node(cluster)
    cluster.until("the new node to be ready", 120, cluster.all_ready)
    ready = time.monotonic() - begin
    workload.add_to(name)
    workload.wait()
    return name, ready


def leave(cluster: Cluster, name: str) -> None:
    cluster.kubectl("drain", name, "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout=60s")
    cluster.remove_node(name)
    cluster.kubectl("delete", "node", name)


def subnets_of(cluster: Cluster, node: str) -> list[str]:
    text = cluster.asks("get", "node", node, "-o", "json")
    return json.loads(text)["spec"].get("podCIDRs", []) if text else []


def routes(cluster: Cluster, node: str, subnet: str) -> str:
    family = "-6" if ":" in subnet else "-4"
    return cluster.run(node, "ip", family, "route", "show", "exact", subnet, text=True, capture_output=True).stdout


def the_api_server_restarts(cluster: Cluster, workload: Workload) -> str:
    with pings.running(workload.flows()) as lost:
        for _ in range(3):
            cluster.restart(cluster.control_plane, "kube-apiserver")
            cluster.until("API server", 120, lambda: cluster.asks("get", "--raw", "/readyz"))
        cluster.until("nodes that are ready", 120, cluster.all_ready)
    check_ready(cluster)
    return f"3 times; {none_lost(lost)}"


def a_node_restarts_while_the_api_server_is_away(cluster: Cluster, workload: Workload) -> str:
    node = list(cluster.nodes)[-1]
    before = network_process(cluster, node)
    check(before is not None, f"{node} has no process of the network")
    with pings.running(workload.flows()) as lost:
        cluster.stop(cluster.control_plane, "kube-apiserver")
        try:
            cluster.run(node, "kill", "-KILL", str(before))
            begin = time.monotonic()
            # The kubelet starts the container again, without asking anybody.
            wait_for("the node to be started again", 90, lambda: network_process(cluster, node) not in (None, before))
            wait_for("the node to be ready without an API server", 60, lambda: ready(cluster, node))
            took = time.monotonic() - begin
            time.sleep(5)
        finally:
            cluster.restart(cluster.control_plane, "kube-apiserver")
        cluster.until("API server", 120, lambda: cluster.asks("get", "--raw", "/readyz"))
        cluster.until("nodes that are ready", 180, cluster.all_ready)
    return f"ready {took:.1f} s after it was killed; {none_lost(lost)}"


def wait_for(what: str, seconds: float, condition) -> None:
    """As Cluster.until, where a daemon is stopped on purpose."""
    end = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < end, f"not there after {seconds} s: {what}")
        time.sleep(0.2)


def network_process(cluster: Cluster, node: str) -> int | None:
    """The process of the network under test, by its number in the node."""
    found = cluster.run(node, "pgrep", "-x", "flannel-node|flanneld", text=True, capture_output=True, check=False).stdout.split()
    return int(found[0]) if len(found) == 1 else None


def ready(cluster: Cluster, node: str) -> bool:
    command = ["curl", "-sf", "--max-time", "2", "-o", "/dev/null", "http://127.0.0.1:8081/readyz"]
    return cluster.run(node, *command, check=False).returncode == 0


def check_ready(cluster: Cluster) -> None:
    for node in cluster.nodes:
        wait_for(f"{node} to be ready", 60, lambda: ready(cluster, node))


def an_update_rolls_without_a_lost_packet(cluster: Cluster, workload: Workload) -> str:
    with pings.running(workload.flows()) as lost:
        cluster.kubectl("rollout", "restart", f"daemonset/{DAEMON_SET}", "-n", NAMESPACE)
        networks.wait(cluster)
    return none_lost(lost)


def nodes_migrate_from_flannel_and_back(cluster: Cluster, workload: Workload, **settings) -> str:
    """One node after the other, as the DaemonSet's update does it, with pods that keep running."""
    said = []
    started = {pod["metadata"]["uid"] for pod in cluster.objects("pods", "-n", "default")}
    before = published(cluster)
    for network in ("flannel", "flannel-node"):
        with pings.running(workload.flows()) as lost:
            begin = time.monotonic()
            networks.apply(cluster, network, **settings)
            took = time.monotonic() - begin
            # flannel repairs its rules every 5 s, and the last node has just begun.
            time.sleep(6)
        agents = {pod["spec"]["containers"][0]["image"].partition(":")[0] for pod in networks.pods(cluster).values()}
        check(len(agents) == 1, f"images {agents}")
        said.append(f"to {network} in {took:.0f} s: {pings.describe(lost)}")
        pods_reach_each_other_and_services(cluster, workload)
    check({pod["metadata"]["uid"] for pod in cluster.objects("pods", "-n", "default")} == started, "pods were replaced")
    check(published(cluster) == before, f"annotations were {before} and are {published(cluster)}")
    check(all(": 0 of" in line for line in said), "; ".join(said))
    return "; ".join(said)


def published(cluster: Cluster) -> dict:
    """flannel's annotations of all nodes."""
    return {
        node["metadata"]["name"]: {key: value for key, value in node["metadata"]["annotations"].items() if key.startswith("flannel.")}
        for node in cluster.objects("nodes")
    }


def the_backend_changes(cluster: Cluster, workload: Workload) -> str:
    """By nothing but the ConfigMap."""
    with pings.running(workload.flows()) as lost:
        for backend in ({"Type": "host-gw"}, {"Type": "vxlan"}):
            move(cluster, backend)
            check_ready(cluster)
            pods_reach_each_other_and_services(cluster, workload)
    return f"vxlan to host-gw and back; {none_lost(lost)}"


def move(cluster: Cluster, backend: dict) -> None:
    """Changes the backend in the ConfigMap and waits until all nodes have moved. Kubelets take up to two minutes to show it to them."""
    def moved() -> bool:
        nodes = published(cluster).values()
        return all(each.get(BACKEND_TYPE) == backend["Type"] and not each.get(SECOND_BACKEND) for each in nodes)

    networks.apply(cluster, "flannel-node", backend=backend)
    cluster.until(f"all nodes to have moved to {backend['Type']}", 300, moved)


def keys_are_rotated(cluster: Cluster, workload: Workload) -> str:
    """There and back, which makes new keys each time."""
    keys = [public_keys(cluster)]
    with pings.running(workload.flows()) as lost:
        for name in ("wireguard-2", "wireguard"):
            move(cluster, {"Type": name})
            keys.append(public_keys(cluster))
            check_ready(cluster)
            pods_reach_each_other_and_services(cluster, workload)
    count = sum(map(len, keys))
    check(count == 3 * len(cluster.nodes) and len(set().union(*keys)) == count, f"keys {keys}")
    return f"{count} keys; {none_lost(lost)}"


def public_keys(cluster: Cluster) -> set[str]:
    return {json.loads(each[BACKEND_DATA])["PublicKey"] for each in published(cluster).values()}


def what_is_wrong_with_a_peer_is_an_event(cluster: Cluster, _workload: Workload) -> str:
    """Two Nodes without a machine that say they use another backend: the second is counted in the event of the first."""
    def told() -> list[dict]:
        events = cluster.objects("events", "-n", "default", "--field-selector", "reason=PeerOtherBackend,source=flannel")
        return [event for event in events if event["involvedObject"]["name"] == cluster.control_plane]

    names = ["ghost1", "ghost2"]
    try:
        for number, name in enumerate(names, 1):
            annotations = {f"{networks.ANNOTATIONS}/{key}": value for key, value in {
                "kube-subnet-manager": "true", "backend-type": "ipip", "backend-data": "null", "public-ip": f"192.0.2.{number}",
            }.items()}
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": annotations}}
            cluster.kubectl("create", "-f", "-", input=json.dumps(node))
            cluster.until("the event", 120, lambda: any(event["count"] >= number for event in told()))
        [event] = told()
        described = cluster.kubectl("describe", "node", cluster.control_plane)
        check("PeerOtherBackend" in described, "kubectl describe node shows no event")
    finally:
        cluster.kubectl("delete", "node", *names, "--ignore-not-found")
    return event["message"]


def rights_are_those_that_are_used(cluster: Cluster, _workload: Workload) -> str:
    role = json.loads(cluster.kubectl("get", "clusterrole", "flannel", "-o", "json"))
    granted, used = audit.rights_granted(role), set(audit.rights_used(OUR_AGENT))
    used.add(("list", "nodes"))  # only where the server refuses to stream the first list
    check(used == granted, f"granted and unused: {sorted(granted - used)}; used and not granted: {sorted(used - granted)}")
    return f"{len(granted)} rights: " + ", ".join(f"{verb} {resource}" for verb, resource in sorted(granted))


def no_right_is_missing(cluster: Cluster, _workload: Workload) -> str:
    role = json.loads(cluster.kubectl("get", "clusterrole", "flannel", "-o", "json"))
    missing = set(audit.rights_used(OUR_AGENT)) - audit.rights_granted(role)
    check(not missing, f"used and not granted: {sorted(missing)}")
    return "nothing was asked for that is not granted"


def the_node_condition_says_that_the_network_is_there(cluster: Cluster, _workload: Workload) -> str:
    for node in cluster.objects("nodes"):
        conditions = {condition["type"]: condition for condition in node["status"]["conditions"]}
        check(conditions.get("NetworkUnavailable", {}).get("status") == "False", f"{node['metadata']['name']}: {conditions}")
    return "NetworkUnavailable is False on all nodes"


def logs(cluster: Cluster, destination: Path) -> None:
    """Saves what the network's pods wrote."""
    destination.mkdir(parents=True, exist_ok=True)
    for node in cluster.nodes:
        for log in (STATE / node / "var/log/pods").glob(f"{NAMESPACE}_*/kube-flannel/*.log"):
            (destination / f"{node}-{log.parts[-3].split('_')[1]}-{log.name}").write_bytes(log.read_bytes())
