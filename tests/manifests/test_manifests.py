#!/usr/bin/python3
"""What is in dist/kubernetes, as far as it can be checked without a cluster: ./ci.sh manifests runs this."""

import json
import re
import subprocess
import unittest

import yaml
from manifests import DIST, ROOT, TOOLS, VALUES, Refused, container, net_conf, one, plain, pod_of, rendered


class Manifests(unittest.TestCase):
    maxDiff = None

    def test_the_plain_manifest_is_the_chart_with_its_defaults(self):
        objects, plain_objects = rendered({}), [each for each in plain() if each["kind"] != "Namespace"]
        daemon_set = one(objects, "DaemonSet")
        # The plain manifest's configuration is edited in place, so it can have no checksum of it.
        del daemon_set["spec"]["template"]["metadata"]["annotations"]
        for each in daemon_set["spec"]["template"]["spec"]["containers"] + daemon_set["spec"]["template"]["spec"]["initContainers"]:
            self.assertEqual(each.pop("imagePullPolicy"), "IfNotPresent")  # the default of tags other than latest
        for each in (objects, plain_objects):
            texts = one(each, "ConfigMap")["data"]
            texts.update({name: json.loads(text) for name, text in texts.items()})
        self.assertEqual(by_name(objects), by_name(plain_objects))

    def test_it_has_the_names_of_flannels_manifest(self):
        self.assertEqual(sorted(by_name(plain())), [
            "ClusterRole/flannel", "ClusterRoleBinding/flannel", "ConfigMap/kube-flannel-cfg", "DaemonSet/kube-flannel-ds",
            "Namespace/kube-flannel", "ServiceAccount/flannel",
        ])
        self.assertEqual(one(plain(), "DaemonSet")["spec"]["selector"], {"matchLabels": {"app": "flannel"}})
        names = ["install-cni-plugin", "install-cni", "kube-flannel"]
        self.assertEqual([container(plain(), name)["name"] for name in names], names)

    def test_it_has_the_version_of_the_program(self):
        version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        chart = yaml.safe_load((DIST / "chart/Chart.yaml").read_text())
        self.assertEqual([chart["version"], chart["appVersion"]], [version, version])
        self.assertEqual(container(plain())["image"], f"localhost/flannel-node:{version}")
        [image] = yaml.safe_load((DIST / "kustomization.yaml").read_text())["images"]
        self.assertEqual([image["name"], image["newTag"]], ["localhost/flannel-node", version])

    def test_containers_have_no_more_rights_than_they_need(self):
        for values in VALUES.values():
            pod = one(rendered(values), "DaemonSet")["spec"]["template"]["spec"]
            self.assertEqual(pod["securityContext"], {"seccompProfile": {"type": "RuntimeDefault"}})
            for each in pod["containers"] + pod.get("initContainers", []):
                context = each["securityContext"]
                self.assertEqual(context["capabilities"]["drop"], ["ALL"])
                self.assertTrue(context["readOnlyRootFilesystem"])
                self.assertFalse(context["allowPrivilegeEscalation"])
                self.assertNotIn("privileged", context)
        added = [container(plain(), name)["securityContext"]["capabilities"].get("add") for name in
                 ("install-cni-plugin", "install-cni", "kube-flannel")]
        self.assertEqual(added, [None, None, ["NET_ADMIN"]])

    def test_every_mount_has_a_volume_and_every_volume_a_mount(self):
        for name, values in VALUES.items():
            pod = one(rendered(values), "DaemonSet")["spec"]["template"]["spec"]
            mounted = {mount["name"] for each in pod["containers"] + pod.get("initContainers", []) for mount in each["volumeMounts"]}
            self.assertEqual(mounted, {volume["name"] for volume in pod["volumes"]}, name)

    def test_values_become_the_networks_configuration(self):
        for name, expected in {
            "defaults": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}},
            "dual stack": {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10:244::/56",
                           "Backend": {"Type": "vxlan"}},
            "IPv6 only": {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:10:244::/56", "Backend": {"Type": "vxlan"}},
            "host-gw": {"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw", "MTU": 1400}},
            "udp by eBPF": {"Network": "10.244.0.0/16", "Backend": {"Type": "udp", "Engine": "ebpf"}},
            "values of flannel's chart": {
                "Network": "10.244.0.0/16", "EnableNFTables": True,
                "Backend": {"Type": "vxlan", "VNI": 4096, "Port": 4789, "GBP": True, "DirectRouting": True}},
            "wireguard": {"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard", "ListenPort": 4000, "Mode": "ipv4"}},
            "further keys": {"Network": "10.244.0.0/16", "EnableNFTables": True, "Backend": {"Type": "vxlan", "VNI": 7}},
        }.items():
            self.assertEqual(net_conf(rendered(VALUES[name])), expected, name)
        other_name = {"flannel": VALUES["wireguard"]["flannel"] | {"backend": "wireguard-2"}}
        self.assertEqual(net_conf(rendered(other_name))["Backend"], {"Type": "wireguard-2", "ListenPort": 4000, "Mode": "ipv4"})

    def test_what_is_false_or_zero_is_a_value_as_well(self):
        for values, expected in (
            ({"podCidrv6": "fd00::/48", "flannel": {"netConf": {"EnableIPv6": False}}}, {"EnableIPv6": False}),
            ({"flannel": {"directRouting": True, "netConf": {"Backend": {"DirectRouting": False}}}},
             {"Backend": {"Type": "vxlan", "DirectRouting": False}}),
            ({"flannel": {"vni": 7, "backendConfig": {"VNI": 0, "Type": "udp"}}}, {"Backend": {"Type": "vxlan", "VNI": 0}}),
        ):
            written = net_conf(rendered(values))
            self.assertEqual({key: written[key] for key in expected}, expected)
        other_type = container(rendered({"flannel": {"netConf": {"Backend": {"Type": "udp"}}}}))
        self.assertIn({"name": "tun", "mountPath": "/dev/net/tun"}, other_type["volumeMounts"])

    def test_a_key_with_nothing_behind_it_is_no_riddle(self):
        def without_each(values: dict):
            for key, value in values.items():
                yield {key: None}
                if isinstance(value, dict):
                    yield from ({key: inner} for inner in without_each(value))

        for values in without_each(yaml.safe_load((DIST / "chart/values.yaml").read_text())):
            try:
                rendered(values)
            except Refused as refused:
                self.assertIn("values don't meet the specifications of the schema", str(refused), values)

    def test_values_become_the_daemon_set(self):
        daemon = container(rendered(VALUES["host-gw"]))
        self.assertEqual(daemon["args"][2:5], ["--iface=eth1", "--iface=192.0.2.7", "--iface-regex=^10\\."])
        objects = rendered(VALUES["udp by eBPF"])
        self.assertIn({"name": "tun", "mountPath": "/dev/net/tun"}, container(objects)["volumeMounts"])
        self.assertEqual(container(objects)["securityContext"]["capabilities"]["add"], ["NET_ADMIN", "BPF"])
        objects = rendered(VALUES["all labels"])
        self.assertEqual({each["metadata"]["labels"]["team"] for each in objects}, {"network"})
        self.assertEqual({each["metadata"]["annotations"]["example.com/owner"] for each in objects}, {"network"})
        self.assertEqual(one(objects, "ClusterRoleBinding")["subjects"][0]["name"], "pod-network")
        spec = one(objects, "DaemonSet")["spec"]
        self.assertEqual(spec["updateStrategy"], {"type": "OnDelete"})
        self.assertEqual(spec["template"]["metadata"]["labels"]["zone"], "a")
        self.assertEqual(container(objects)["args"][2:4], ["--probe-peers", "--v=1"])
        objects = rendered(VALUES["as little as possible"])
        self.assertEqual(sorted(by_name(objects)), ["ConfigMap/kube-flannel-cfg", "DaemonSet/kube-flannel-ds"])
        self.assertNotIn("initContainers", one(objects, "DaemonSet")["spec"]["template"]["spec"])
        self.assertFalse({"livenessProbe", "ports", "readinessProbe", "resources"} & set(container(objects)))
        objects = rendered(VALUES["mirror"])
        images = {container(objects, name)["image"] for name in ("install-cni-plugin", "install-cni", "kube-flannel")}
        self.assertEqual(images, {"registry.example.com/mirror/flannel-node:0.1.0"})

    def test_values_become_what_schedules_and_watches_the_pods(self):
        values = VALUES["all labels"]["flannel"]
        pod, daemon = pod_of(rendered(VALUES["all labels"])), container(rendered(VALUES["all labels"]))
        for name in ("affinity", "nodeSelector", "priorityClassName", "tolerations"):
            self.assertEqual(pod[name], values[name], name)
        self.assertIn(values["extraVolumes"][0], pod["volumes"])
        self.assertIn(values["extraVolumeMounts"][0], daemon["volumeMounts"])
        self.assertIn(values["extraEnv"][0], daemon["env"])
        self.assertEqual(daemon["resources"]["limits"], {"memory": "64Mi"})
        self.assertEqual(daemon["resources"]["requests"], {"cpu": "50m", "memory": "20Mi"})
        self.assertIn("--healthz-port=9081", daemon["args"])
        self.assertEqual(daemon["ports"], [{"name": "healthz", "containerPort": 9081, "protocol": "TCP"}])
        for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            self.assertEqual(daemon[probe]["httpGet"], {"path": path, "port": "healthz"})
        self.assertEqual([daemon["livenessProbe"]["failureThreshold"], daemon["readinessProbe"]["periodSeconds"]], [5, 2])

        pod = pod_of(rendered(VALUES["as little as possible"]))
        self.assertFalse({"imagePullSecrets", "nodeSelector", "tolerations"} & set(pod))
        self.assertEqual(pod_of(rendered(VALUES["values of flannel's chart"]))["imagePullSecrets"], [{"name": "registry"}])
        monitor = one(rendered(VALUES["monitored"]), "PodMonitor")
        self.assertEqual(monitor["metadata"]["labels"]["release"], "prometheus")
        self.assertEqual(monitor["spec"]["podMetricsEndpoints"], [{"port": "healthz", "interval": "15s"}])
        self.assertEqual(monitor["spec"]["selector"], one(rendered({}), "DaemonSet")["spec"]["selector"])
        self.assertNotIn("PodMonitor", [each["kind"] for each in rendered({})])

    def test_values_say_which_plugins_are_installed(self):
        def install(values: dict) -> tuple[str, list[str]]:
            found = container(rendered(values), "install-cni-plugin")
            return found["image"], found["command"] + found["args"]

        ours = "localhost/flannel-node:0.1.0"
        self.assertEqual(install({}), (ours, ["/flannel-cni", "install", "--replace=flannel", "/opt/cni/bin"]))
        self.assertEqual(install(VALUES["all plugins"]), (
            ours, ["/flannel-cni", "install", "--replace=bridge,flannel,host-local,loopback,portmap", "/opt/cni/bin"]))
        none = {"flannel": {"flannel_cni": {"replace": []}}}
        self.assertEqual(install(none), (ours, ["/flannel-cni", "install", "/opt/cni/bin"]))
        self.assertEqual(install(VALUES["flannel's own plugin"]), (
            "registry.example.com/mirror/flannel-io/flannel-cni-plugin:v1.9.1-flannel3",
            ["cp", "-f", "/flannel", "/opt/cni/bin/flannel"]))

    def test_another_configuration_restarts_the_nodes(self):
        checksums = [one(rendered(VALUES[name]), "DaemonSet")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
                     for name in ("defaults", "all labels", "dual stack")]
        self.assertEqual(checksums[0], checksums[1])
        self.assertNotEqual(checksums[0], checksums[2])

    def test_the_namespace_is_the_releases(self):
        for each in rendered({}, namespace="kube-system"):
            if each["kind"] in ("ConfigMap", "DaemonSet", "ServiceAccount"):
                self.assertEqual(each["metadata"]["namespace"], "kube-system")
        self.assertEqual(one(rendered({}, namespace="kube-system"), "ClusterRoleBinding")["subjects"][0]["namespace"], "kube-system")

    def test_mistakes_are_refused_by_their_names(self):
        for values, named in [
            ({"podCIDR": "10.0.0.0/8"}, "podCIDR"),
            ({"podCidr": "10.0.0.0"}, "podCidr"),
            ({"podCidr": "fd00::/56"}, "podCidr"),
            ({"podCidrv6": "10.0.0.0/8"}, "podCidrv6"),
            ({"netpol": {"enabled": True}}, "netpol.enabled: this chart has no engine for network policies"),
            ({"netpol": {"enabled": "no"}}, "netpol"),
            ({"flannel": {"backend": "ipip"}}, "backend"),
            ({"flannel": {"vni": 16777216}}, "vni"),
            ({"flannel": {"healthz": {"port": 65536}}}, "port"),
            ({"flannel": {"capabilities": []}}, "capabilities"),
            ({"flannel": {"mtu": "big"}}, "mtu"),
            ({"flannel": {"flannel_cni": {"replace": ["vlan"]}}}, "replace"),
            ({"flannel": {"flannel_cni": {"image": {"repository": "flannel-cni-plugin"}}}}, "tag"),
            ({"podMonitor": {"enabled": True}, "flannel": {"healthz": {"port": 0}}}, "podMonitor.enabled needs flannel.healthz.port"),
        ]:
            with self.assertRaises(Refused, msg=str(values)) as refused:
                rendered(values)
            self.assertIn(named, str(refused.exception))

    def test_alerts_and_dashboard_parse_and_use_metrics_that_exist(self):
        files = [DIST / "monitoring/prometheus-rules.yml", DIST / "monitoring/grafana-dashboard.json"]
        result = subprocess.run([TOOLS / "rules", *files], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        used = set(result.stdout.split())
        # A test of flannel-daemon compares the page with the program.
        page = (ROOT / "docs/metrics.md").read_text()
        documented = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.M))
        exist = set(documented) | {name + part for name, kind in documented.items() if kind == "summary" for part in ("_sum", "_count")}
        self.assertGreater(len(used), 20)
        self.assertLessEqual(used, exist)


def by_name(objects: list[dict]) -> dict[str, dict]:
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in objects}


if __name__ == "__main__":
    unittest.main()
