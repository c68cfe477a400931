"""A cluster on one machine: its namespaces, its daemons, and what later commands have to know of it."""

import json
import os
import shutil
import subprocess
import time
import zlib
from pathlib import Path

import kubernetes as k8s
import nodes
from nodes import enter

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("CLUSTER_CACHE") or Path.home() / ".cache/flannel-cluster").absolute()
BINARIES = CACHE / "bin"
IMAGES = CACHE / "images"
STATE = CACHE / "state"

GATEWAY = 1  # host number of the switch
FIRST_NODE = 11  # host number of node1


class Failure(Exception):
    """An expected failure, reported without a traceback."""


class Cluster:
    """A cluster that is up, or on its way there. Its state is also in a file, for the next command."""

    def __init__(self, families: str, proxy: str):
        self.family_names = families
        self.families = k8s.FAMILIES[families]
        self.proxy = proxy
        self.switch: dict = {}
        self.nodes: dict[str, dict] = {}
        self.daemons: dict[str, dict[str, dict]] = {}
        self.archives: list[str] = []

    @classmethod
    def create(cls, families: str, proxy: str, count: int) -> "Cluster":
        """Makes the namespaces of a new cluster, in which nothing runs yet."""
        if STATE.exists():
            raise Failure("a cluster exists already, or remains of one: cluster.py down")
        if not (IMAGES / "pause.tar").exists():
            raise Failure(f"nothing is built in {CACHE}: run ./build first")
        STATE.mkdir(parents=True)
        cluster = cls(families, proxy)
        cluster.archives = [str(archive) for archive in sorted(IMAGES.glob("*.tar"))]
        cluster._add_switch()
        for number in range(1, count + 1):
            cluster.add_node(f"node{number}")
        return cluster

    @classmethod
    def load(cls) -> "Cluster":
        try:
            saved = json.loads((STATE / "cluster.json").read_text())
        except FileNotFoundError:
            raise Failure("there is no cluster: cluster.py up") from None
        cluster = cls(saved["families"], saved["proxy"])
        for field in ("switch", "nodes", "daemons", "archives"):
            setattr(cluster, field, saved[field])
        return cluster

    def save(self) -> None:
        (STATE / "cluster.json").write_text(json.dumps({
            "families": self.family_names, "proxy": self.proxy, "switch": self.switch, "nodes": self.nodes,
            "daemons": self.daemons, "archives": self.archives,
        }, indent=1))

    @property
    def control_plane(self) -> str:
        """The node with the API server: like in a cluster made by kubeadm, it takes part in the pod network."""
        return next(iter(self.nodes))

    @property
    def server(self) -> str:
        return f"https://{k8s.bracketed(self.nodes[self.control_plane]['addresses'][0])}:{k8s.API_PORT}"

    # Namespaces

    def _add_switch(self) -> None:
        process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        self.switch = {"pid": process.pid, "started": nodes.start_time(process.pid)}
        self.save()
        while os.stat(f"/proc/{process.pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:
            time.sleep(0.01)
        ip(process.pid, "link set lo up", "link add switch type bridge", "link set switch up", *(
            f"address add {family.host(GATEWAY)}/{prefix(family)} dev switch {nodad(family)}" for family in self.families
        ))

    def add_node(self, name: str) -> None:
        """Makes a node's namespaces and connects them to the switch."""
        number = int(name.removeprefix("node"))
        directory = STATE / name
        directory.mkdir()
        # Clusters of other caches have nodes of the same names.
        cgroups = nodes.make_cgroups(f"flannel-cluster-{zlib.crc32(bytes(CACHE)):08x}/{name}")
        addresses = [family.host(FIRST_NODE - 1 + number) for family in self.families]
        self.nodes[name] = {"cgroups": cgroups, "addresses": addresses}
        self.daemons[name] = {}
        self.save()
        pid = nodes.start_node(name, directory, cgroups)
        self.nodes[name] |= {"pid": pid, "started": nodes.start_time(pid)}
        self.save()
        ip(self.switch["pid"], f"link add {name} type veth peer name eth0 netns {pid}", f"link set {name} master switch up")
        ip(pid, "link set eth0 up", *(
            f"address add {address}/{prefix(family)} dev eth0 {nodad(family)}"
            for family, address in zip(self.families, addresses)
        ), *(f"route add default via {family.host(GATEWAY)} dev eth0" for family in self.families))

    def remove_node(self, name: str) -> None:
        """Turns a node off, with all that ran on it. Its Node object stays."""
        facts = self.nodes.pop(name)
        del self.daemons[name]
        kill_node(facts)
        shutil.rmtree(STATE / name)
        self.save()

    def remove(self) -> None:
        for facts in self.nodes.values():
            kill_node(facts)
        if self.switch:
            nodes.kill(self.switch["pid"], self.switch["started"])
        shutil.rmtree(STATE)

    # Commands in nodes

    def command(self, node: str, *command: str) -> list[str]:
        """The command line that runs a command in a node, for a process that joins the node's cgroups itself."""
        if node not in self.nodes:
            raise Failure(f"there is no {node}")
        return enter(self.nodes[node]["pid"], *command)

    def run(self, node: str, *command: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(node, *command), preexec_fn=self.joins(node), **({"check": True} | options))

    def joins(self, node: str):
        return lambda: nodes.join_cgroups(self.nodes[node]["cgroups"])

    def path(self, node: str, path: str) -> Path:
        """A file of a node, as the host sees it."""
        return Path(f"/proc/{self.nodes[node]['pid']}/root", path.lstrip("/"))

    # Daemons

    def start(self, node: str, name: str, command: list[str]) -> None:
        log = STATE / node / f"{name}.log"
        outside = subprocess.Popen(
            self.command(node, *command), stdin=subprocess.DEVNULL, stdout=log.open("a"), stderr=subprocess.STDOUT,
            env={"PATH": f"{BINARIES}:{nodes.PATH}", "HOME": "/root"}, start_new_session=True, preexec_fn=self.joins(node),
        )
        try:
            pid = nodes.only_child(outside.pid)
        except (FileNotFoundError, TimeoutError):
            raise Failure(f"{node}: {name} did not start, see {log}") from None
        self.daemons[node][name] = {"pid": pid, "started": nodes.start_time(pid), "command": command}
        self.save()

    def stop(self, node: str, name: str, patience: float = 10) -> None:
        """Ends a daemon. With no patience it is killed at once."""
        try:
            daemon = self.daemons[node][name]
        except KeyError:
            raise Failure(f"there is no {name} on {node}") from None
        nodes.kill(daemon["pid"], daemon["started"], patience)

    def restart(self, node: str, name: str, patience: float = 10) -> None:
        self.stop(node, name, patience)
        self.start(node, name, self.daemons[node][name]["command"])

    def check_daemons(self) -> None:
        for node, daemons in self.daemons.items():
            for name, daemon in daemons.items():
                if nodes.start_time(daemon["pid"]) != daemon["started"]:
                    log = STATE / node / f"{name}.log"
                    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                    raise Failure(f"{node}: {name} ended, see {log}:\n{tail}")

    def start_api_server(self) -> None:
        node = self.control_plane
        addresses = self.nodes[node]["addresses"]
        pki = k8s.Pki(STATE / "pki")
        pki.create(addresses, self.families)
        for name in ("admin", "kube-controller-manager", "kube-scheduler", "kube-proxy"):
            (STATE / f"{name}.conf").write_text(pki.kubeconfig(self.server, name))
        (STATE / "kubelet.json").write_text(k8s.kubelet_configuration(pki, self.families))
        (STATE / "proxy.json").write_text(k8s.proxy_configuration(STATE / "kube-proxy.conf", self.proxy, self.families))
        (STATE / "containerd.toml").write_text(k8s.containerd_configuration())
        self.start(node, "etcd", k8s.etcd(STATE / "etcd"))
        self.start(node, "kube-apiserver", k8s.apiserver(
            pki, addresses[0], self.families, HERE / "manifests/audit-policy.yaml", STATE / "audit.log"))

    def start_controllers(self) -> None:
        """Waits for the API server first: the controller manager ends after 10 s without it."""
        self.until("API server", 300, lambda: self.asks("get", "--raw", "/readyz"))
        node = self.control_plane
        self.start(node, "kube-controller-manager", k8s.controller_manager(
            k8s.Pki(STATE / "pki"), STATE / "kube-controller-manager.conf", self.families))
        self.start(node, "kube-scheduler", k8s.scheduler(STATE / "kube-scheduler.conf"))
        self.until("service accounts", 60, lambda: self.asks("get", "serviceaccount", "default"))

    def start_runtimes(self, names: list[str]) -> None:
        """containerd on these nodes, with CNI plugins and images."""
        for node in names:
            self.start(node, "containerd", k8s.containerd(STATE / "containerd.toml"))
            self.run(node, "mkdir", "-p", "/opt/cni/bin", "/etc/cni/net.d")
            self.give_plugins(node)
        for node in names:
            self.until("containerd", 30, self.path(node, "/run/containerd/containerd.sock").exists)
        self._import(names, self.archives)

    def give_plugins(self, node: str) -> None:
        """Puts containernetworking's plugins into a node, as its distribution does."""
        self.run(node, "sh", "-c", f"cp --remove-destination {BINARIES}/cni/* /opt/cni/bin")

    def start_kubelets(self, names: list[str]) -> None:
        pki = k8s.Pki(STATE / "pki")
        for node in names:
            pki.certify_node(node)
            (STATE / f"{node}.conf").write_text(pki.kubeconfig(self.server, node))
            self.start(node, "kubelet", k8s.kubelet(
                STATE / "kubelet.json", STATE / f"{node}.conf", node, self.nodes[node]["addresses"]))
            self.start(node, "kube-proxy", k8s.proxy(STATE / "proxy.json", node))
        self.until("Node objects", 120, lambda: set(self.nodes) <= self.known_nodes())

    def load_images(self, *archives: Path) -> None:
        """Imports images into all nodes, and into those that join later."""
        added = [str(archive.absolute()) for archive in archives]
        self._import(list(self.nodes), added)
        self.archives = [archive for archive in self.archives if archive not in added] + added
        self.save()

    def _import(self, names: list[str], archives: list[str]) -> None:
        imports = [
            subprocess.Popen(self.command(node, str(BINARIES / "ctr"), "-n", "k8s.io", "images", "import", archive),
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=self.joins(node))
            for archive in archives for node in names
        ]
        said = [process.communicate()[1] for process in imports]
        for process, text in zip(imports, said):
            if process.returncode != 0:
                raise Failure(f"an image was not imported: {text.strip()}")

    # Kubernetes

    def kubectl_command(self, *arguments: str) -> list[str]:
        # In the node's network, with the host's files.
        pid = self.nodes[self.control_plane]["pid"]
        return enter(pid, "kubectl", f"--kubeconfig={STATE / 'admin.conf'}", f"--cache-dir={STATE / 'kubectl'}", *arguments,
                     namespaces=("--net",))

    def kubectl(self, *arguments: str, **options) -> str:
        result = subprocess.run(self.kubectl_command(*arguments), text=True, capture_output=True, **options)
        if result.returncode != 0:
            raise Failure(f"kubectl {' '.join(arguments)}: {(result.stderr or result.stdout).strip()}")
        return result.stdout

    def asks(self, *arguments: str) -> str | None:
        """Like kubectl, but None if that fails."""
        try:
            return self.kubectl(*arguments)
        except Failure:
            return None

    def objects(self, *arguments: str) -> list[dict]:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))["items"]

    def known_nodes(self) -> set[str]:
        names = (self.asks("get", "nodes", "-o", "name") or "").split()
        return {name.removeprefix("node/") for name in names}

    def all_ready(self) -> bool:
        states = self.asks("get", "nodes", "-o", r'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}')
        return (states or "").split() == ["True"] * len(self.nodes)

    def until(self, what: str, seconds: float, condition) -> None:
        end = time.monotonic() + seconds
        while not condition():
            self.check_daemons()
            if time.monotonic() > end:
                raise Failure(f"not there after {seconds} s: {what}; logs are in {STATE}/*/*.log")
            time.sleep(0.5)


def kill_node(facts: dict) -> None:
    if "pid" in facts:
        nodes.kill(facts["pid"], facts["started"])
    for group in map(Path, facts["cgroups"].values()):
        nodes.remove_cgroups(group)
        # The cluster's own group, together with the last node's.
        if group.parent.exists() and not any(child.is_dir() for child in group.parent.iterdir()):
            group.parent.rmdir()


def ip(pid: int, *commands: str) -> None:
    subprocess.run(enter(pid, "ip", "-batch", "-", namespaces=("--net",)), input="\n".join(commands), text=True, check=True)


def prefix(family: k8s.Family) -> str:
    return family.hosts.split("/")[1]


def nodad(family: k8s.Family) -> str:
    return "nodad" if family.version == 6 else ""
