//! `kubectl flannel bench`: a pod on each of two nodes, for as long as the measurement takes.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use flannel_kube::Resource;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    ClusterAccess, KubectlError,
    access::{Pod, parsed},
    bench_peer::Measured,
};

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The node from which packets are sent.
    pub from: String,
    /// The node to which they are sent.
    pub to: String,
    /// For how long throughput and round trips are looked at, each.
    pub length: Duration,
    /// Whether the pods use their nodes' networks: that shows what the pod network costs.
    pub host_network: bool,
}

/// Measures between two nodes, and deletes the pods that it made for that, also when `stop` resolves before the end. `said` is told
/// what happens.
///
/// # Errors
///
/// [`KubectlError`] that says what keeps the pods from running.
pub async fn bench(
    access: &ClusterAccess,
    options: &BenchOptions,
    stop: impl Future<Output = ()>,
    mut said: impl FnMut(&str),
) -> Result<Measured, KubectlError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let id = format!("{:x}{:x}", now.as_nanos(), std::process::id());
    let names = [format!("flannel-bench-{id}-to"), format!("flannel-bench-{id}-from")];
    let measured = tokio::select! {
        measured = run(access, options, &names, &mut said) => measured,
        () = stop => Err(KubectlError::Stopped),
    };
    let mut left = names.to_vec();
    remove(access, options, &mut left, &mut said).await;
    if measured.is_err() && !left.is_empty() {
        // A request that was given up may be carried out a little later.
        sleep(LATE).await;
        remove(access, options, &mut left, &mut said).await;
    }
    measured
}

/// Deletes pods; those that are not there stay in `names`.
async fn remove(
    access: &ClusterAccess,
    options: &BenchOptions,
    names: &mut Vec<String>,
    said: &mut impl FnMut(&str),
) {
    let pods = access.bench_pods();
    let mut missing = Vec::new();
    for name in names.drain(..) {
        match access.client.delete(&pods, &name).await {
            Ok(()) => {}
            Err(error) if error.is_not_found() => missing.push(name),
            Err(error) => said(&format!(
                "{error}: {}: it ends by itself after {} s, kubectl delete pod {name} -n {} removes it",
                error.reason,
                lifetime(options),
                access.flannel
            )),
        }
    }
    *names = missing;
}

async fn run(
    access: &ClusterAccess,
    options: &BenchOptions,
    [to, from]: &[String; 2],
    said: &mut impl FnMut(&str),
) -> Result<Measured, KubectlError> {
    let flannels = access.flannels().await?;
    let flannel = |node: &String| {
        flannels.get(node).ok_or_else(|| KubectlError::NoFlannel { node: node.clone() })
    };
    let flannels = (flannel(&options.to)?, flannel(&options.from)?);
    said(&format!("starting pods on {} and {}", options.to, options.from));
    let port = PORT.to_string();
    let answering = manifest(to, flannels.0, &["--answer", &port], options);
    access.create_bench_pod(&answering).await?;
    let answering = wait(access, to, START_LIMIT, |pod| pod.status.phase == "Running").await?;
    let address = answering.status.pod_ips.first().ok_or_else(|| KubectlError::BenchPod {
        pod: to.clone(),
        reason: "runs and has no address".into(),
    })?;
    let address = SocketAddr::new(address.ip, PORT).to_string();
    let seconds = options.length.as_secs().to_string();
    let asking = ["--measure", &address, "--seconds", &seconds];
    let asking = manifest(from, flannels.1, &asking, options);
    access.create_bench_pod(&asking).await?;
    wait(access, from, START_LIMIT, |pod| pod.status.phase == "Running" || ended(pod)).await?;
    said(&format!("measuring for {} s", 2 * options.length.as_secs()));
    let ended = wait(access, from, 2 * options.length + END_LIMIT, ended).await?;
    let log = access.client.get_part(&access.bench_pods(), from, &["log"], &[]).await?;
    let log = String::from_utf8_lossy(&log);
    let last = log.trim().lines().last().unwrap_or_default();
    if ended.status.phase != "Succeeded" {
        let reason = format!("failed: {}{last}", ended.status.message);
        return Err(KubectlError::BenchPod { pod: from.clone(), reason });
    }
    parsed(last.as_bytes(), || format!("the log of {from}"))
}

fn ended(pod: &Pod) -> bool {
    matches!(pod.status.phase.as_str(), "Failed" | "Succeeded")
}

/// Waits until the pod is as it should be, for so long at most.
async fn wait(
    access: &ClusterAccess,
    name: &str,
    limit: Duration,
    is_there: impl Fn(&Pod) -> bool,
) -> Result<Pod, KubectlError> {
    let until = Instant::now() + limit;
    loop {
        let pod = access.pod(&access.flannel, name).await?;
        if is_there(&pod) {
            return Ok(pod);
        }
        let waits = pod.status.container_statuses.iter().find_map(|it| it.state.waiting.as_ref());
        let waits = waits.map(|it| format!("{} {}", it.reason, it.message));
        // An image that is not there does not come by waiting.
        let is_hopeless =
            waits.as_ref().is_some_and(|it| it.contains("Image") || it.contains("CreateContainer"));
        if is_hopeless || ended(&pod) || Instant::now() >= until {
            let message = &pod.status.message;
            let reason = match waits {
                Some(waits) => format!("does not run: {} {message}", waits.trim()),
                None if pod.status.phase == "Running" => {
                    format!("runs and has not ended after {} s", limit.as_secs())
                }
                None => format!("does not run: it is {} {message}", pod.status.phase),
            };
            return Err(KubectlError::BenchPod { pod: name.into(), reason: reason.trim().into() });
        }
        sleep(POLL_INTERVAL).await;
    }
}

impl ClusterAccess {
    /// Where our pods are: beside flannel's, whose image they run.
    fn bench_pods(&self) -> Resource {
        Resource::namespaced("pods", &self.flannel)
    }

    async fn create_bench_pod(&self, pod: &Value) -> Result<(), KubectlError> {
        match self.client.create(&self.bench_pods(), pod.to_string()).await {
            // Nobody else has the name: it was an attempt whose answer was lost.
            Err(error) if !error.is_conflict() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// A pod that has no rights, runs the program of flannel's pod beside it whatever the scheduler thinks, and ends by itself.
fn manifest(name: &str, flannel: &Pod, args: &[&str], options: &BenchOptions) -> Value {
    let image = flannel.flannel_container().map(|it| it.image.as_str()).unwrap_or_default();
    let args: Vec<_> = std::iter::once(&"bench-peer").chain(args).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "flannel-bench" } },
        "spec": {
            "nodeName": flannel.spec.node_name,
            "imagePullSecrets": flannel.spec.image_pull_secrets,
            "hostNetwork": options.host_network,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": lifetime(options),
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "tolerations": [{ "operator": "Exists" }],
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": NOBODY,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "bench",
                "image": image,
                "command": ["/flannel-node"],
                "args": args,
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] },
                    "readOnlyRootFilesystem": true,
                },
            }],
        },
    })
}

/// How long a pod lives at most, seconds.
fn lifetime(options: &BenchOptions) -> u64 {
    2 * options.length.as_secs() + 2 * START_LIMIT.as_secs()
}

/// Nobody else's: iperf3 has 5201.
const PORT: u16 = 5281;
/// How long a pod may take to start.
const START_LIMIT: Duration = Duration::from_secs(90);
/// How much longer than what it measures a pod may take to end: connecting, the last bytes, and its status.
const END_LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// How long an API server may still work on a request after its client has gone.
const LATE: Duration = Duration::from_secs(1);
const NOBODY: u32 = 65534;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_no_rights_and_ends_by_itself() {
        let options = BenchOptions {
            from: "n1".into(),
            to: "n2".into(),
            length: Duration::from_secs(5),
            host_network: false,
        };
        let flannel = serde_json::from_value(json!({"spec": {
            "nodeName": "n2", "imagePullSecrets": [{"name": "registry"}],
            "containers": [{"name": "sidecar", "image": "sidecar:1"}, {"name": "kube-flannel", "image": "flannel-node:1"}],
        }}));
        let pod = manifest("b", &flannel.unwrap(), &["--answer", "1"], &options);
        let spec = &pod["spec"];
        assert_eq!(spec["containers"][0]["args"], json!(["bench-peer", "--answer", "1"]));
        assert_eq!(spec["containers"][0]["image"], "flannel-node:1");
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}]));
        assert_eq!((&spec["nodeName"], &spec["restartPolicy"]), (&json!("n2"), &json!("Never")));
        assert_eq!(spec["activeDeadlineSeconds"], 190);
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        let container = &spec["containers"][0]["securityContext"];
        assert_eq!(container["capabilities"], json!({ "drop": ["ALL"] }));
    }
}
