#!/usr/bin/python3
"""Starts clusters with flannel-node as their network, deployed by the shipped manifest, and runs trials on them.

suite.py PROGRAM [SCENARIO …|all]: the static flannel-node, and which of SCENARIOS to run (default: those for every change).
"""

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import cluster as clusters
import conformance
import faults
import images
import networks
import plugins
import trials
from lab import CACHE, HERE, STATE, Cluster, Failure
from workload import Workload

sys.path.append(str(HERE.parent / "manifests"))


@dataclass(frozen=True)
class Scenario:
    """A cluster, and what is tried on it."""

    family: str = "4"
    proxy: str = "nftables"
    backend: dict = field(default_factory=lambda: networks.VXLAN)
    trials: tuple = ()
    # All of our CNI plugins, in place of containernetworking's.
    all_plugins: bool = False
    # Of the daemon's container, besides those in the manifest.
    capabilities: tuple[str, ...] = ()
    conformance: bool = False
    # For every change; others when they are named.
    always: bool = False


TRIALS = (
    trials.the_node_condition_says_that_the_network_is_there,
    trials.pods_reach_each_other_and_services,
    trials.pods_see_each_others_addresses,
    trials.a_path_is_explained_in_a_pod_of_the_network,
    trials.kubectl_flannel_asks_all_nodes,
    trials.a_node_joins_is_drained_and_deleted,
    trials.a_node_object_is_made_anew_and_gets_other_subnets,
    trials.an_update_rolls_without_a_lost_packet,
    trials.the_api_server_restarts,
    trials.a_node_restarts_while_the_api_server_is_away,
    trials.nodes_migrate_from_flannel_and_back,
    trials.the_backend_changes,
    trials.what_is_wrong_with_a_peer_is_an_event,
    trials.rights_are_those_that_are_used,
)
FEW = TRIALS[:3]
EBPF = (*FEW, trials.programs_carry_packets_on_all_nodes, trials.an_update_rolls_without_a_lost_packet)
PLUGINS = (
    plugins.ports_of_nodes_lead_to_pods,
    plugins.a_node_says_why_no_pod_can_start,
    plugins.pods_outlive_an_exchange_of_plugins,
)
FAULTS = (
    faults.the_api_server_is_killed_while_nodes_come_and_go,
    faults.packets_to_the_api_server_vanish,
)

SCENARIOS = {
    "dual": Scenario(family="46", trials=TRIALS, always=True),
    "dual-conformance": Scenario(family="46", trials=FEW, conformance=True),
    "cni": Scenario(family="46", trials=(*FEW, *PLUGINS), all_plugins=True, conformance=True),
    "few": Scenario(family="46", trials=(*FEW, trials.no_right_is_missing)),
    "faults": Scenario(family="46", trials=FAULTS),
    "host-gw": Scenario(backend={"Type": "host-gw"}, proxy="iptables", trials=FEW, conformance=True),
    "udp": Scenario(backend={"Type": "udp"}, trials=(*FEW, trials.threads_carry_packets_on_all_nodes), conformance=True),
    "udp-ebpf": Scenario(family="46", backend={"Type": "udp", "Engine": "ebpf"}, capabilities=("BPF",), trials=EBPF, conformance=True),
    "wireguard": Scenario(family="46", backend={"Type": "wireguard"}, trials=(*FEW, trials.keys_are_rotated), conformance=True),
    "v4": Scenario(trials=FEW, conformance=True),
    "v6": Scenario(family="6", trials=FEW, conformance=True),
    "iptables": Scenario(family="46", proxy="iptables", trials=FEW, conformance=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("scenarios", nargs="*", choices=[[], "all", *SCENARIOS], metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--keep", action="store_true", help="leave the last cluster up")
    parser.add_argument("--only", default="", help="only trials whose names have this")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise Failure("this needs root")
    image = CACHE / "flannel-node.tar"
    images.pack(arguments.program, image)
    shutil.copy(arguments.program.with_name("flannel-cni"), plugins.OURS)
    trials.PLUGIN.parent.mkdir(exist_ok=True)
    trials.PLUGIN.unlink(missing_ok=True)
    trials.PLUGIN.symlink_to(arguments.program.absolute())
    names = list(SCENARIOS) if arguments.scenarios == ["all"] else arguments.scenarios or [name for name, scenario in SCENARIOS.items() if scenario.always]
    failed = [failure for name in names for failure in run(name, image, arguments.only, arguments.keep and name == names[-1])]
    print(f"{len(failed)} failed" + "".join(f"\n  {failure}" for failure in failed))
    sys.exit(bool(failed))


def run(name: str, image: Path, only: str, keep: bool) -> list[str]:
    """Runs a scenario and returns what failed."""
    scenario = SCENARIOS[name]
    print(f"=== {name}: family {scenario.family}, kube-proxy with {scenario.proxy}, {json.dumps(scenario.backend)}", flush=True)
    failed = []
    clusters.down()
    try:
        cluster = clusters.up(2, scenario.family, scenario.proxy, "flannel-node", [image], backend=scenario.backend, all_plugins=scenario.all_plugins,
                              capabilities=scenario.capabilities)
        workload = Workload(cluster).create()
        dry_run(cluster)
        for trial in scenario.trials:
            if only in trial.__name__:
                failed += attempt(f"{name}: {trial.__name__.replace('_', ' ')}", lambda: trial(cluster, workload))
        if scenario.conformance and not only:
            failed += attempt(f"{name}: conformance", lambda: conform(cluster))
    except Exception as error:
        traceback.print_exc()
        failed.append(f"{name}: {error}")
    if STATE.exists() and (STATE / "cluster.json").exists():
        destination = CACHE / "logs" / name
        trials.logs(Cluster.load(), destination)
        if failed:
            print(f"logs of the network's pods: {destination}")
    if not keep:
        clusters.down()
    return failed


def attempt(what: str, action) -> list[str]:
    begin = time.monotonic()
    try:
        said = action()
    except Exception as error:
        if not isinstance(error, Failure):
            traceback.print_exc()
        print(f"FAILED {time.monotonic() - begin:6.1f} s  {what}: {error}", flush=True)
        return [f"{what}: {error}"]
    print(f"ok     {time.monotonic() - begin:6.1f} s  {what}: {said}", flush=True)
    return []


def dry_run(cluster: Cluster) -> None:
    """The API server takes whatever the chart makes, without making it; in another namespace, where nothing is that it would be merged with."""
    import manifests

    if not (manifests.TOOLS / "helm").exists():
        text = f"the chart's objects, because there is no {manifests.TOOLS}/helm (./ci.sh manifests builds it)"
        if os.environ.get("CI") == "true":
            raise Failure(f"not tried: {text}")
        print(f"left out: {text}")
        return
    count = 0
    for name, values in manifests.VALUES.items():
        # What makes no sense without the Prometheus operator's definitions.
        items = [each for each in manifests.rendered(values, "default") if each["kind"] != "PodMonitor"]
        objects = {"apiVersion": "v1", "kind": "List", "items": items}
        try:
            cluster.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict",
                            "-f", "-", input=json.dumps(objects))
        except Failure as failure:
            raise Failure(f"the chart with {name}: {failure}") from None
        count += len(items)
    kustomized = cluster.kubectl("kustomize", str(manifests.DIST))
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-", input=kustomized)
    print(f"ok: the API server takes {count} objects of {len(manifests.VALUES)} renderings, and the kustomization", flush=True)


def conform(cluster: Cluster) -> str:
    results = conformance.run(cluster)
    if results["failed"] or not results["passed"]:
        names = "; ".join(name for name, _ in results["failed"])
        raise Failure(f"{len(results['passed'])} passed, {len(results['failed'])} failed: {names}")
    return f"{len(results['passed'])} of {len(results['passed'])} specs"


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"suite.py: {failure}")
