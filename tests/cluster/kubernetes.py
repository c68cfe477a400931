"""What Kubernetes needs to run: certificates, configuration files and command lines."""

import base64
import json
import subprocess
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

PAUSE = "registry.k8s.io/pause:3.10.2"
COREDNS = "registry.k8s.io/coredns/coredns:local"
CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True)
class Family:
    """The address ranges of a cluster in one IP family."""

    version: int
    pods: str
    services: str
    hosts: str
    node_mask: int

    def host(self, number: int) -> str:
        return str(ip_network(self.hosts)[number])

    def service(self, number: int) -> str:
        return str(ip_network(self.services)[number])


# The hosts' ranges are the ones for documentation (RFC 5737, RFC 3849): nothing else uses them.
IPV4 = Family(4, "10.244.0.0/16", "10.96.0.0/16", "192.0.2.0/24", 24)
IPV6 = Family(6, "fd00:10:244::/56", "fd00:10:96::/112", "2001:db8::/64", 64)
FAMILIES = {"4": [IPV4], "46": [IPV4, IPV6], "64": [IPV6, IPV4], "6": [IPV6]}

DNS_NUMBER = 10  # of the service range
API_PORT = 6443


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def pods(families: list[Family]) -> str:
    return ",".join(family.pods for family in families)


def services(families: list[Family]) -> str:
    return ",".join(family.services for family in families)


class Pki:
    """One certificate authority, and the certificates that it signed."""

    def __init__(self, directory: Path):
        self.directory = directory

    def path(self, file: str) -> str:
        return str(self.directory / file)

    def create(self, control_plane: list[str], families: list[Family]) -> None:
        self.directory.mkdir()
        self._certificate("ca", "/CN=cluster", "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign")
        addresses = ["127.0.0.1", "::1", *control_plane, *(family.service(1) for family in families)]
        names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        alternatives = [f"IP:{address}" for address in addresses] + [f"DNS:{name}" for name in names]
        self._certificate("apiserver", "/CN=kube-apiserver", "subjectAltName=" + ",".join(alternatives), signed=True)
        for name, subject in {
            "admin": "/O=system:masters/CN=admin",
            "kubelet-client": "/O=system:masters/CN=kube-apiserver",
            "front-proxy": "/CN=front-proxy",
            "kube-controller-manager": "/CN=system:kube-controller-manager",
            "kube-scheduler": "/CN=system:kube-scheduler",
            "kube-proxy": "/CN=system:kube-proxy",
        }.items():
            self._certificate(name, subject, signed=True)
        subprocess.run(["openssl", "genrsa", "-out", self.path("accounts.key"), "2048"], check=True, capture_output=True)

    def certify_node(self, node: str) -> None:
        self._certificate(node, f"/O=system:nodes/CN=system:node:{node}", signed=True)

    def _certificate(self, name: str, subject: str, *extensions: str, signed: bool = False) -> None:
        signer = ["-CA", self.path("ca.crt"), "-CAkey", self.path("ca.key")] if signed else []
        if signed:
            # openssl's default is an authority, and not every client takes one for a server.
            extensions += ("basicConstraints=critical,CA:FALSE",)
        added = [part for extension in extensions for part in ("-addext", extension)]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "365",
             "-subj", subject, "-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.crt"), *signer, *added],
            check=True, capture_output=True,
        )

    def kubeconfig(self, server: str, name: str) -> str:
        user = self._data("client-certificate", f"{name}.crt") | self._data("client-key", f"{name}.key")
        return json.dumps({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": {"server": server, **self._data("certificate-authority", "ca.crt")}}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": "user"}}],
            "current-context": "cluster",
        }, indent=1)

    def _data(self, key: str, file: str) -> dict:
        return {f"{key}-data": base64.b64encode((self.directory / file).read_bytes()).decode()}


def etcd(directory: Path) -> list[str]:
    # Nothing here has to outlive a power cut.
    return ["etcd", f"--data-dir={directory}", "--unsafe-no-fsync", "--log-level=warn"]


def apiserver(pki: Pki, address: str, families: list[Family], audit_policy: Path, audit_log: Path) -> list[str]:
    return [
        "kube-apiserver",
        f"--advertise-address={address}",
        "--bind-address=" + ("::" if any(family.version == 6 for family in families) else "0.0.0.0"),
        f"--secure-port={API_PORT}",
        "--etcd-servers=http://127.0.0.1:2379",
        "--allow-privileged",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={services(families)}",
        f"--client-ca-file={pki.path('ca.crt')}",
        f"--tls-cert-file={pki.path('apiserver.crt')}",
        f"--tls-private-key-file={pki.path('apiserver.key')}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={pki.path('kubelet-client.crt')}",
        f"--kubelet-client-key={pki.path('kubelet-client.key')}",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={pki.path('accounts.key')}",
        f"--service-account-signing-key-file={pki.path('accounts.key')}",
        f"--requestheader-client-ca-file={pki.path('ca.crt')}",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki.path('front-proxy.crt')}",
        f"--proxy-client-key-file={pki.path('front-proxy.key')}",
        f"--audit-policy-file={audit_policy}",
        f"--audit-log-path={audit_log}",
        "--profiling=false",
    ]


def controller_manager(pki: Pki, kubeconfig: Path, families: list[Family]) -> list[str]:
    masks = {4: "ipv4", 6: "ipv6"}
    # The flag's name depends on whether there are two families.
    infix = (lambda family: f"-{masks[family.version]}") if len(families) == 2 else (lambda family: "")
    return [
        "kube-controller-manager",
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={pki.path('accounts.key')}",
        f"--root-ca-file={pki.path('ca.crt')}",
        f"--cluster-signing-cert-file={pki.path('ca.crt')}",
        f"--cluster-signing-key-file={pki.path('ca.key')}",
        "--allocate-node-cidrs",
        f"--cluster-cidr={pods(families)}",
        f"--service-cluster-ip-range={services(families)}",
        *(f"--node-cidr-mask-size{infix(family)}={family.node_mask}" for family in families),
    ]


def scheduler(kubeconfig: Path) -> list[str]:
    return ["kube-scheduler", f"--kubeconfig={kubeconfig}", "--leader-elect=false"]


def kubelet_configuration(pki: Pki, families: list[Family]) -> str:
    return json.dumps({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": pki.path("ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDomain": CLUSTER_DOMAIN,
        "clusterDNS": [family.service(DNS_NUMBER) for family in families[:1]],
        # The disk is the host's, and how full it is is none of the cluster's business.
        "evictionHard": {signal: "0%" for signal in ("imagefs.available", "nodefs.available", "nodefs.inodesFree")},
        "imageGCHighThresholdPercent": 100,
    }, indent=1)


def kubelet(configuration: Path, kubeconfig: Path, name: str, addresses: list[str]) -> list[str]:
    return ["kubelet", f"--config={configuration}", f"--kubeconfig={kubeconfig}", f"--hostname-override={name}",
            "--node-ip=" + ",".join(addresses)]


def proxy_configuration(kubeconfig: Path, mode: str, families: list[Family]) -> str:
    return json.dumps({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "mode": mode,
        "clusterCIDR": pods(families),
        # Sizes that only the machine's first network namespace may change.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }, indent=1)


def proxy(configuration: Path, name: str) -> list[str]:
    return ["kube-proxy", f"--config={configuration}", f"--hostname-override={name}"]


def containerd_configuration() -> str:
    # restrict_oom_score_adj: root in a container may lack CAP_SYS_RESOURCE, which a score below one's own takes.
    return f"""version = 3
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt"]
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def containerd(configuration: Path) -> list[str]:
    return ["containerd", f"--config={configuration}", "--log-level=warn"]
