"""The networks that clusters are started with: flannel and this project's, each by the manifest that its users apply."""

import json
from pathlib import Path

import yaml

from kubernetes import Family
from lab import CACHE, HERE, Cluster

MANIFESTS = {
    # From flannel's module, with the version of the flanneld that is built.
    "flannel": CACHE / "kube-flannel.yml",
    "flannel-node": HERE.parents[1] / "dist/kubernetes/kube-flannel.yml",
}
NAMESPACE, DAEMON_SET = "kube-flannel", "kube-flannel-ds"
VXLAN = {"Type": "vxlan"}
ANNOTATIONS = "flannel.alpha.coreos.com"
TUN = ("udp", "wireguard", "wireguard-2")


def objects(network: str, families: list[Family], backend: dict = VXLAN, all_plugins: bool = False, capabilities: tuple[str, ...] = (),
            **settings) -> list[dict]:
    """The manifest's objects, with the network's configuration edited as an operator does.

    `all_plugins` installs all of our CNI plugins in place of those that are there. `capabilities` are added to those of our daemon's container.
    """
    documents = list(yaml.safe_load_all(Path(MANIFESTS[network]).read_text()))
    for document in documents:
        if document["kind"] == "ConfigMap":
            document["data"]["net-conf.json"] = json.dumps(net_conf(families, backend) | settings)
        if document["kind"] == "DaemonSet" and backend["Type"] in TUN:
            give_tun(document["spec"]["template"]["spec"])
        if document["kind"] == "DaemonSet" and network == "flannel-node":
            document["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] += capabilities
        if all_plugins and network == "flannel-node":
            replace_plugins(document)
    return documents


def net_conf(families: list[Family], backend: dict) -> dict:
    pods = {family.version: family.pods for family in families}
    conf: dict = {"Network": pods[4]} if 4 in pods else {"EnableIPv4": False}
    if 6 in pods:
        conf |= {"EnableIPv6": True, "IPv6Network": pods[6]}
    return conf | {"Backend": backend}


def replace_plugins(document: dict) -> None:
    """What docs/cni.md says, with the version of the specification that has STATUS."""
    if document["kind"] == "ConfigMap":
        conflist = json.loads(document["data"]["cni-conf.json"])
        document["data"]["cni-conf.json"] = json.dumps(conflist | {"cniVersion": "1.1.0"})
    if document["kind"] == "DaemonSet":
        [install] = [each for each in document["spec"]["template"]["spec"]["initContainers"] if each["name"] == "install-cni-plugin"]
        install["args"] = ["install", "--replace", "/opt/cni/bin"]


def give_tun(pod: dict) -> None:
    """What backends with an engine of their own need besides, as docs/kubernetes.md says."""
    pod["volumes"].append({"name": "tun", "hostPath": {"path": "/dev/net/tun", "type": "CharDevice"}})
    pod["containers"][0]["volumeMounts"].append({"name": "tun", "mountPath": "/dev/net/tun"})


def apply(cluster: Cluster, network: str, **settings) -> None:
    """Applies a network's manifest and waits until it runs on all nodes."""
    items = {"apiVersion": "v1", "kind": "List", "items": objects(network, cluster.families, **settings)}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(items))
    wait(cluster)


def give_argument(cluster: Cluster, argument: str) -> None:
    """Adds an argument to the daemon's, until the manifest is applied again."""
    patch = [{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": argument}]
    cluster.kubectl("patch", "daemonset", DAEMON_SET, "-n", NAMESPACE, "--type=json", "-p", json.dumps(patch))
    wait(cluster)


def wait(cluster: Cluster, seconds: int = 300) -> None:
    cluster.kubectl("rollout", "status", f"daemonset/{DAEMON_SET}", "-n", NAMESPACE, f"--timeout={seconds}s")


def pods(cluster: Cluster) -> dict[str, dict]:
    """The network's pods by node."""
    return {pod["spec"]["nodeName"]: pod for pod in cluster.objects("pods", "-n", NAMESPACE, "-l", "app=flannel")}
