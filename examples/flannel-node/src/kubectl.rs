//! `flannel-node kubectl`, which is `kubectl flannel` when the program is called kubectl-flannel.

use std::time::Duration;

use anyhow::{Context, Result};
use flannel_daemon::kubectl::{self, bench_peer};
use tokio::signal::ctrl_c;

use crate::{
    args::{BenchPeerArgs, KubectlCommand},
    output::{print, say},
};

/// Looks at the cluster. Fine is a cluster in which all nodes are ready, and a path on which nothing is broken.
pub(crate) async fn run(command: KubectlCommand) -> Result<bool> {
    match command {
        KubectlCommand::Status { kube_annotation_prefix: prefix, cluster } => {
            let status = kubectl::status(&cluster.access()?, &prefix).await?;
            print(format_args!("{status}"));
            Ok(status.is_ready())
        }
        KubectlCommand::Explain { source, destination, cluster } => {
            let report = kubectl::explain(&cluster.access()?, &source, &destination).await?;
            print(format_args!("{report}"));
            Ok(report.is_fine())
        }
        KubectlCommand::Bench(args) => {
            let stop = async { drop(ctrl_c().await) };
            let (access, options) = (args.cluster.access()?, args.options());
            let said = |line: &str| eprintln!("{line}");
            print(format_args!("{}", kubectl::bench(&access, &options, stop, said).await?));
            Ok(true)
        }
    }
}

/// Is one end of a measurement.
pub(crate) async fn bench_peer(args: &BenchPeerArgs) -> Result<()> {
    let Some(address) = args.measure else {
        let port = args.answer.context("neither --answer nor --measure is given")?;
        return Ok(bench_peer::answer(port).await?);
    };
    let measured = bench_peer::measure(address, Duration::from_secs(args.seconds)).await;
    let measured = measured.with_context(|| format!("cannot measure the path to {address}"))?;
    say!("{}", serde_json::to_string(&measured)?);
    Ok(())
}
