"""What goes wrong in clusters, and what has to hold meanwhile. As in trials.py, each trial says in a sentence what holds."""

import json
import time

import networks
import pings
from lab import Cluster
from trials import check, check_ready, none_lost, ready, routes, wait_for
from workload import Workload

KILLS = 100
MADE_UP = "made-up-{}"


def the_api_server_is_killed_while_nodes_come_and_go(cluster: Cluster, workload: Workload) -> str:
    """The nodes that come and go are objects without a machine, which flannel's annotations make peers."""
    with pings.running(workload.flows()) as lost:
        for number in range(KILLS):
            cluster.kubectl("create", "-f", "-", input=json.dumps(made_up(cluster, number)))
            if number > 0:
                cluster.kubectl("delete", "node", MADE_UP.format(number - 1), "--wait=false")
            cluster.restart(cluster.control_plane, "kube-apiserver", patience=0)
            # Roles are read last: kubectl may do what it wants before others may.
            cluster.until("API server", 120, lambda: cluster.asks("get", "--raw", "/readyz"))
        begin = time.monotonic()
        stays, gone = made_up(cluster, KILLS - 1), made_up(cluster, KILLS - 2)
        for node in cluster.nodes:
            wait_for(f"{node} to have the last node's routes", 60, lambda: has_routes(cluster, node, stays) == {True})
            # A node whose removal was not seen, because the API server has forgotten what happened before it began, is served for two minutes.
            wait_for(f"{node} to have no routes of those before", 180, lambda: has_routes(cluster, node, gone) == {False})
        took = time.monotonic() - begin
        cluster.kubectl("delete", "node", stays["metadata"]["name"])
        cluster.until("nodes that are ready", 180, cluster.all_ready)
    check_ready(cluster)
    return f"{KILLS} times; routes right {took:.1f} s after the last; {none_lost(lost)}"


def made_up(cluster: Cluster, number: int) -> dict:
    subnets = [subnet(family.pods, number) for family in cluster.families]
    address = {f"{networks.ANNOTATIONS}/public-{'ipv6' if family.version == 6 else 'ip'}": family.host(200) for family in cluster.families}
    mac = json.dumps({"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"})
    data = {f"{networks.ANNOTATIONS}/backend-{'v6-' if family.version == 6 else ''}data": mac for family in cluster.families}
    kind = {f"{networks.ANNOTATIONS}/kube-subnet-manager": "true", f"{networks.ANNOTATIONS}/backend-type": "vxlan"}
    return {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": MADE_UP.format(number), "annotations": address | data | kind},
        "spec": {"podCIDR": subnets[0], "podCIDRs": subnets, "unschedulable": True},
    }


def subnet(pods: str, number: int) -> str:
    """A subnet that the controller manager does not get to: it starts from the other end."""
    if ":" in pods:
        return f"{pods.partition('::')[0]}:{0xff - number:x}::/64"
    return f"{pods.partition('.0.')[0]}.{255 - number}.0/24"


def has_routes(cluster: Cluster, node: str, peer: dict) -> set[bool]:
    return {bool(routes(cluster, node, subnet)) for subnet in peer["spec"]["podCIDRs"]}


def packets_to_the_api_server_vanish(cluster: Cluster, workload: Workload) -> str:
    """Neither side hears of it, so the watch looks alive. The node that was cut off learns what happened when packets pass again."""
    cut_off = list(cluster.nodes)[-1]
    peer = made_up(cluster, 0)
    with pings.running(workload.flows()) as lost:
        block = "table inet trial { chain out { type filter hook output priority 0; tcp dport 6443 drop; }; }"
        cluster.run(cut_off, "nft", block)
        try:
            cluster.kubectl("create", "-f", "-", input=json.dumps(peer))
            time.sleep(150)
            check(ready(cluster, cut_off), f"{cut_off} is not ready any more")
        finally:
            cluster.run(cut_off, "nft", "delete table inet trial")
        begin = time.monotonic()
        wait_for(f"{cut_off} to have the new node's routes", 60, lambda: has_routes(cluster, cut_off, peer) == {True})
        took = time.monotonic() - begin
        cluster.kubectl("delete", "node", peer["metadata"]["name"])
        cluster.until("nodes that are ready", 180, cluster.all_ready)
    return f"routes right {took:.1f} s after 150 s; {none_lost(lost)}"
