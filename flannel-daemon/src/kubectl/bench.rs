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
    let pods = access.bench_pods();
    for name in &names {
        match access.client.delete(&pods, name).await {
            Err(error) if !error.is_not_found() => {
                said(&format!(
                    "{error}: {}: it ends by itself after {} s, kubectl delete pod {name} -n {} removes it",
                    error.reason,
                    lifetime(options),
                    access.flannel
                ));
            }
            _ => {}
        }
    }
    measured
}

async fn run(
    access: &ClusterAccess,
    options: &BenchOptions,
    [to, from]: &[String; 2],
    said: &mut impl FnMut(&str),
) -> Result<Measured, KubectlError> {
    let flannels = access.flannels().await?;
    let image = |node: &String| {
        let pod =
            flannels.get(node).ok_or_else(|| KubectlError::NoFlannel { node: node.clone() })?;
        let container = pod.spec.containers.first();
        Ok::<_, KubectlError>(container.map(|it| it.image.clone()).unwrap_or_default())
    };
    let images = (image(&options.to)?, image(&options.from)?);
    said(&format!("starting pods on {} and {}", options.to, options.from));
    let pods = access.bench_pods();
    let port = PORT.to_string();
    let answering = manifest(to, &options.to, &images.0, &["--answer", &port], options);
    access.client.create(&pods, answering.to_string()).await?;
    let answering = wait(access, to, |pod| pod.status.phase == "Running").await?;
    let address = answering.status.pod_ips.first().ok_or_else(|| KubectlError::BenchPod {
        pod: to.clone(),
        trouble: "runs and has no address".into(),
    })?;
    let address = SocketAddr::new(address.ip, PORT).to_string();
    let seconds = options.length.as_secs().to_string();
    let asking = ["--measure", &address, "--seconds", &seconds];
    let asking = manifest(from, &options.from, &images.1, &asking, options);
    access.client.create(&pods, asking.to_string()).await?;
    wait(access, from, |pod| pod.status.phase == "Running" || ended(pod)).await?;
    said(&format!("measuring for {} s", 2 * options.length.as_secs()));
    let ended = wait(access, from, ended).await?;
    let log = access.client.get_part(&pods, from, &["log"], &[]).await?;
    let log = String::from_utf8_lossy(&log);
    let last = log.trim().lines().last().unwrap_or_default();
    if ended.status.phase != "Succeeded" {
        let trouble = format!("failed: {}{last}", ended.status.message);
        return Err(KubectlError::BenchPod { pod: from.clone(), trouble });
    }
    parsed(last.as_bytes(), || format!("the log of {from}"))
}

fn ended(pod: &Pod) -> bool {
    matches!(pod.status.phase.as_str(), "Failed" | "Succeeded")
}

/// Waits until the pod is as it should be.
async fn wait(
    access: &ClusterAccess,
    name: &str,
    is_there: impl Fn(&Pod) -> bool,
) -> Result<Pod, KubectlError> {
    let until = Instant::now() + PATIENCE;
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
            let reason = waits.unwrap_or_else(|| format!("it is {}", pod.status.phase));
            let message = &pod.status.message;
            let trouble = format!("does not run: {} {message}", reason.trim());
            return Err(KubectlError::BenchPod {
                pod: name.into(),
                trouble: trouble.trim().into(),
            });
        }
        sleep(LOOK_EVERY).await;
    }
}

impl ClusterAccess {
    /// Where our pods are: beside flannel's, whose image they run.
    fn bench_pods(&self) -> Resource {
        Resource::namespaced("pods", &self.flannel)
    }
}

/// A pod that has no rights, is on this node whatever the scheduler thinks, and ends by itself.
fn manifest(name: &str, node: &str, image: &str, args: &[&str], options: &BenchOptions) -> Value {
    let args: Vec<_> = std::iter::once(&"bench-peer").chain(args).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "flannel-bench" } },
        "spec": {
            "nodeName": node,
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
    2 * options.length.as_secs() + 2 * PATIENCE.as_secs()
}

/// Nobody else's: iperf3 has 5201.
const PORT: u16 = 5281;
/// How long a pod may take to be as it should be, or 50 s longer than the measurement.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(300);
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
        let pod = manifest("b", "n2", "flannel-node:1", &["--answer", "1"], &options);
        let spec = &pod["spec"];
        assert_eq!(spec["containers"][0]["args"], json!(["bench-peer", "--answer", "1"]));
        assert_eq!((&spec["nodeName"], &spec["restartPolicy"]), (&json!("n2"), &json!("Never")));
        assert_eq!(spec["activeDeadlineSeconds"], 190);
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        let container = &spec["containers"][0]["securityContext"];
        assert_eq!(container["capabilities"], json!({ "drop": ["ALL"] }));
    }
}
