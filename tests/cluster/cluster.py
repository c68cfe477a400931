#!/usr/bin/python3
"""A Kubernetes cluster on one machine, to test container networks in. See README.md."""

import argparse
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import audit
import conformance
import images
import kubernetes as k8s
import networks
import nodes
from lab import HERE, IMAGES, STATE, Cluster, Failure
from nodes import enter


@contextmanager
def step(what: str):
    print(f"{what} … ", end="", flush=True)
    begin = time.monotonic()
    yield
    print(f"{time.monotonic() - begin:.1f} s", flush=True)


def up(count: int, families: str, proxy: str, network: str, archives: list[Path] = [], **settings) -> Cluster:
    """Starts a cluster with a network, `none` for none: then nodes are not ready, and nothing runs that needs it."""
    begin = time.monotonic()
    with step(f"{count} nodes"):
        cluster = Cluster.create(families, proxy, count)
    with step("control plane and images"):
        cluster.start_api_server()
        cluster.start_runtimes(list(cluster.nodes))
        if archives:
            cluster.load_images(*archives)
        cluster.start_controllers()
    with step("kubelets"):
        cluster.start_kubelets(list(cluster.nodes))
    manifest = (HERE / "manifests/coredns.yaml").read_text().replace("IMAGE", k8s.COREDNS)
    cluster.kubectl("apply", "-f", "-", input=manifest.replace("DNS_ADDRESS", cluster.families[0].service(k8s.DNS_NUMBER)))
    if network != "none":
        with step(network):
            networks.apply(cluster, network, **settings)
            cluster.until("nodes that are ready", 120, cluster.all_ready)
        with step("name server"):
            cluster.kubectl("rollout", "status", "deployment/coredns", "-n", "kube-system", "--timeout=120s")
    print(f"up after {time.monotonic() - begin:.1f} s")
    return cluster


def add_node(cluster: Cluster) -> str:
    """Adds a node to a cluster that is up, and returns its name."""
    name = f"node{max(int(name.removeprefix('node')) for name in cluster.nodes) + 1}"
    cluster.add_node(name)
    cluster.start_runtimes([name])
    cluster.start_kubelets([name])
    return name


def down() -> None:
    if (STATE / "cluster.json").exists():
        Cluster.load().remove()


def status(cluster: Cluster) -> None:
    print(f"{'NODE':8} {'DAEMON':24} {'PID':>8} {'RSS':>8} {'CPU':>8}")
    for node, daemons in cluster.daemons.items():
        for name, daemon in {"init": cluster.nodes[node], **daemons}.items():
            if nodes.start_time(daemon["pid"]) == daemon["started"]:
                memory, seconds = nodes.use(daemon["pid"])
                print(f"{node:8} {name:24} {daemon['pid']:8} {memory:5.0f} MB {seconds:6.1f} s")
            else:
                print(f"{node:8} {name:24} {'ended':>8}")
    sys.stdout.flush()
    subprocess.run(cluster.kubectl_command("get", "nodes", "-o", "wide"))


def execute(cluster: Cluster, node: str, command: list[str]) -> None:
    if node == "switch":
        command = enter(cluster.switch["pid"], *command, namespaces=("--net",))
    else:
        command = cluster.command(node, *command)
        cluster.joins(node)()
    os.execvp(command[0], command)


def kubectl(cluster: Cluster, arguments: list[str]) -> None:
    command = cluster.kubectl_command(*arguments)
    os.execvp(command[0], command)


def run_conformance(focus: str, skip: list[str], procs: int) -> None:
    results = conformance.run(Cluster.load(), focus, skip, procs)
    for result, cases in results.items():
        for name, seconds in cases:
            print(f"{result} {seconds:7.1f} s  {name}")
    print(", ".join(f"{len(cases)} {result}" for result, cases in results.items()), f"(details: {STATE}/reports)")
    if results["failed"] or not results["passed"]:
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function, description: str):
        command = commands.add_parser(name, help=description, description=description)
        command.set_defaults(function=function)
        return command

    command = add("up", lambda a: up(a.nodes, a.family, a.proxy, a.network, a.image), "start a cluster")
    command.add_argument("--nodes", type=int, default=2)
    command.add_argument("--family", choices=k8s.FAMILIES, default="4", help="IP families, the first one first (default: 4)")
    command.add_argument("--proxy", choices=["nftables", "iptables"], default="nftables", help="mode of kube-proxy")
    command.add_argument("--network", choices=["none", *networks.MANIFESTS], default="flannel")
    command.add_argument("--image", action="append", type=Path, default=[], metavar="IMAGE.tar", help="load it before the network")
    add("down", lambda _: down(), "remove all of it")
    add("add-node", lambda _: print(add_node(Cluster.load())), "add a node")
    command = add("remove-node", lambda a: Cluster.load().remove_node(a.node), "turn a node off; its Node object stays")
    command.add_argument("node")
    add("status", lambda _: status(Cluster.load()), "show nodes, daemons and what they use")
    command = add("kubectl", lambda a: kubectl(Cluster.load(), a.arguments), "run kubectl as administrator")
    command.add_argument("arguments", nargs=argparse.REMAINDER)
    command = add("exec", lambda a: execute(Cluster.load(), a.node, a.command), "run a command in a node")
    command.add_argument("node", help="or 'switch', for the network between nodes")
    command.add_argument("command", nargs=argparse.REMAINDER)
    command = add("restart", lambda a: Cluster.load().restart(a.node, a.daemon), "stop a daemon and start it again")
    command.add_argument("node")
    command.add_argument("daemon", help="as `status` names it")
    command = add("stop", lambda a: Cluster.load().stop(a.node, a.daemon), "stop a daemon")
    command.add_argument("node")
    command.add_argument("daemon")
    command = add("load", lambda a: Cluster.load().load_images(*a.archives), "import images into all nodes")
    command.add_argument("archives", nargs="+", type=Path, metavar="IMAGE.tar")
    command = add("pack", lambda a: images.pack(a.program, a.archive), "make an image of a static flannel-node, for `load`")
    command.add_argument("program", type=Path, help="./ci.sh static makes target/static/flannel-node")
    command.add_argument("archive", type=Path, metavar="IMAGE.tar")
    command = add("audit", lambda a: print(*audit.lines(a.agent), sep="\n"), "print what the network asked of the API server")
    command.add_argument("agent", nargs="?", default="", help="what the User-Agent begins with")
    command = add("conformance", lambda a: run_conformance(a.focus, a.skip, a.procs), "run end-to-end tests of Kubernetes")
    command.add_argument("focus", nargs="?", default=conformance.NETWORK, help="a regular expression (default: %(default)s)")
    command.add_argument("--skip", action="append", default=[], metavar="REGEX")
    command.add_argument("--procs", type=int, default=2, help="how many tests at a time (default: 2)")

    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise Failure("this needs root")
    arguments.function(arguments)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"cluster.py: {failure}")
