"""Pods and services that tests send packets between."""

import json
import time

import images
import kubernetes as k8s
from lab import Cluster, Failure

NAMESPACE = "default"
PORT = 8080
HOST_PORT = 9080  # of pods in the host's network
NODE_PORT = 30080


class Workload:
    """A pod on each node that answers over HTTP, a pod on each node in the host's network, and a service of the former."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster

    def create(self) -> "Workload":
        for node in self.cluster.nodes:
            self.add_to(node)
        families = [f"IPv{family.version}" for family in self.cluster.families]
        self.apply({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo"},
            "spec": {"type": "NodePort", "selector": {"app": "echo"}, "ipFamilies": families,
                     "ipFamilyPolicy": "RequireDualStack" if len(families) == 2 else "SingleStack",
                     "ports": [{"port": 80, "targetPort": PORT, "nodePort": NODE_PORT}]},
        })
        self.wait()
        return self

    def add_to(self, node: str) -> None:
        self.apply(pod(f"echo-{node}", node, {"app": "echo"}))
        self.apply(pod(f"host-{node}", node, {"app": "host"}, hostNetwork=True))

    def wait(self) -> None:
        self.cluster.kubectl("wait", "pod", "--all", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=120s")

    def addresses(self, name: str) -> list[str]:
        status = json.loads(self.cluster.kubectl("get", "pod", name, "-n", NAMESPACE, "-o", "json"))["status"]
        return [entry["ip"] for entry in status["podIPs"]]

    def service_addresses(self) -> list[str]:
        return json.loads(self.cluster.kubectl("get", "service", "echo", "-n", NAMESPACE, "-o", "json"))["spec"]["clusterIPs"]

    def namespace(self, node: str, address: str) -> str:
        """The file of the network namespace that has an address, as the host sees it."""
        for file in self.cluster.path(node, "/run/netns").iterdir():
            shown = self.cluster.run(node, "ip", "-n", file.name, "-o", "address", text=True, capture_output=True).stdout
            if f" {address}/" in shown:
                return str(file)
        raise Failure(f"{node} has no pod with the address {address}")

    def flows(self, names: list[str] | None = None) -> list[tuple[str, str, str]]:
        """From the pod of each node to the pod of the next one, in each family, for pings.running."""
        names = names or list(self.cluster.nodes)
        addresses = {node: self.addresses(f"echo-{node}") for node in names}
        return [
            (f"{source} → {destination} {address}", self.namespace(source, addresses[source][0]), address)
            for source, destination in zip(names, names[1:] + names[:1]) for address in addresses[destination]
        ]

    def ask(self, pod: str, urls: list[str], seconds: float = 20) -> list[str]:
        """What a pod gets from each of these. A service may need a moment to be programmed."""
        script = 'for url; do curl -sS --globoff --max-time 5 "$url" || echo -n "no answer"; echo; done'
        command = ["exec", pod, "-n", NAMESPACE, "--", "bash", "-c", script, "ask", *urls]
        end = time.monotonic() + seconds
        while True:
            answers = self.cluster.kubectl(*command).removesuffix("\n").split("\n")
            if "no answer" not in answers:
                return answers
            if time.monotonic() > end:
                silent = [url for url, answer in zip(urls, answers) if answer == "no answer"]
                raise Failure(f"{pod}: no answer from {', '.join(silent)}")
            time.sleep(0.5)

    def apply(self, document: dict) -> None:
        self.cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", input=json.dumps(document))


def url(address: str, port: int, path: str = "hostname") -> str:
    return f"http://{k8s.bracketed(address)}:{port}/{path}"


def pod(name: str, node: str, labels: dict, **spec) -> dict:
    port = HOST_PORT if spec.get("hostNetwork") else PORT
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1, "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "agnhost", "image": images.AGNHOST[0], "args": ["netexec", f"--http-port={port}", "--udp-port=-1"],
                "readinessProbe": {"httpGet": {"path": "/hostname", "port": port}, "periodSeconds": 2},
            }],
            **spec,
        },
    }
