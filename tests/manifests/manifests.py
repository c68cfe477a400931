"""The manifests of dist/kubernetes as objects, and values that the chart is rendered with in tests."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist/kubernetes"
# Where ./ci.sh manifests builds the programs of this folder.
TOOLS = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").absolute() / "manifests"

# What operators may want, by what it is.
VALUES: dict[str, dict] = {
    "defaults": {},
    "dual stack": {"podCidrv6": "fd00:10:244::/56"},
    "IPv6 only": {"podCidr": "", "podCidrv6": "fd00:10:244::/56"},
    "host-gw": {"flannel": {"backend": "host-gw", "mtu": 1400, "iface": ["eth1", "192.0.2.7"], "ifaceRegex": ["^10\\."]}},
    "udp by eBPF": {"flannel": {"backend": "udp", "backendConfig": {"Engine": "ebpf"}, "capabilities": ["NET_ADMIN", "BPF"]}},
    "wireguard": {"flannel": {"backend": "wireguard", "backendPort": 4000, "backendConfig": {"Mode": "ipv4"}}},
    "values of flannel's chart": {
        "global": {"imagePullSecrets": [{"name": "registry"}]}, "netpol": {"enabled": False, "args": ["--v=2"]},
        "flannel": {"vni": 4096, "backendPort": 4789, "GBP": True, "directRouting": True, "enableNFTables": True,
                    "image": {"repository": "registry.example.com/flannel-node", "tag": "1"}},
    },
    "all labels": {
        "commonLabels": {"team": "network"}, "commonAnnotations": {"example.com/owner": "network"},
        "serviceAccount": {"name": "pod-network", "annotations": {"example.com/role": "none"}},
        "flannel": {"podLabels": {"zone": "a"}, "podAnnotations": {"example.com/scrape": "yes"},
                    "nodeSelector": {"example.com/flannel": "yes"}, "extraArgs": ["--probe-peers", "--v=1"],
                    "extraEnv": [{"name": "FLANNELD_LOG_FORMAT", "value": "json"}],
                    "extraVolumes": [{"name": "more", "emptyDir": {}}],
                    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
                    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]}]}]}}},
                    "updateStrategy": {"type": "OnDelete"}, "priorityClassName": "system-cluster-critical",
                    "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "50m"}},
                    "healthz": {"port": 9081, "livenessProbe": {"failureThreshold": 5}, "readinessProbe": {"periodSeconds": 2}},
                    "tolerations": [{"key": "example.com/network", "operator": "Exists"}]},
    },
    "as little as possible": {
        "rbac": {"create": False}, "serviceAccount": {"create": False},
        "flannel": {"skipCNIConfigInstallation": True, "flannel_cni": {"install": False}, "healthz": {"port": 0},
                    "resources": None, "tolerations": []},
    },
    "mirror": {"global": {"imageRegistry": "registry.example.com/mirror/"}},
    "all plugins": {"flannel": {"flannel_cni": {"replace": ["bridge", "flannel", "host-local", "loopback", "portmap"]}}},
    "flannel's own plugin": {
        "global": {"imageRegistry": "registry.example.com/mirror/"},
        "flannel": {"flannel_cni": {"image": {"repository": "ghcr.io/flannel-io/flannel-cni-plugin", "tag": "v1.9.1-flannel3"}}},
    },
    "further keys": {"flannel": {"netConf": {"EnableNFTables": True, "Backend": {"VNI": 7}}}},
    "monitored": {"podMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}}},
}


class Refused(Exception):
    """The chart does not take these values."""


def plain() -> list[dict]:
    return list(yaml.safe_load_all((DIST / "kube-flannel.yml").read_text()))


def rendered(values: dict, namespace: str = "kube-flannel") -> list[dict]:
    """The chart's objects, as `helm template` renders them."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(values, file)
        file.flush()
        result = subprocess.run([TOOLS / "helm", DIST / "chart", namespace, file.name], capture_output=True, text=True)
    if result.returncode != 0:
        raise Refused(result.stderr.strip())
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def one(objects: list[dict], kind: str) -> dict:
    [found] = [document for document in objects if document["kind"] == kind]
    return found


def pod_of(objects: list[dict]) -> dict:
    return one(objects, "DaemonSet")["spec"]["template"]["spec"]


def container(objects: list[dict], name: str = "kube-flannel") -> dict:
    pod = pod_of(objects)
    [found] = [each for each in pod.get("initContainers", []) + pod["containers"] if each["name"] == name]
    return found


def net_conf(objects: list[dict]) -> dict:
    return json.loads(one(objects, "ConfigMap")["data"]["net-conf.json"])
