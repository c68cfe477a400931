//! The running data path: commands for all peers.

use std::{collections::BTreeMap, ops::Bound, time::Duration};

use async_trait::async_trait;
use flannel_backend::UplinkWatch;
use flannel_core::{
    BackendError, Backoff, Network, PeerFault, PeerProblem, Peers, Subnet, SyncReport,
};
use flannel_netlink::{Monitor, Namespace};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::{
    backend::{take_down, unwritable},
    command::{CommandError, Shell},
    plan::{Served, Step, Target, steps},
    record::Record,
};

/// Peers that commands have been run for.
#[derive(Debug)]
pub(crate) struct ExtensionNetwork {
    shell: Shell,
    uplink: UplinkWatch,
    record: Record,
    failures: BTreeMap<Subnet, Failed>,
    /// The kernel's notifications, where there is a command to find out what they mean.
    monitor: Option<Monitor>,
    /// Whether peers have to be checked.
    is_suspicious: bool,
    /// Whose check was running when a sync was given up, and how often it was.
    checking: Option<(Subnet, u32)>,
    /// When they may be checked again.
    next_check: Instant,
}

/// A peer whose last command failed.
#[derive(Debug)]
struct Failed {
    fault: PeerFault,
    attempts: u32,
    backoff: Backoff,
    pause: Duration,
    again: Instant,
}

impl ExtensionNetwork {
    pub(crate) fn new(
        shell: Shell,
        namespace: &Namespace,
        uplink: UplinkWatch,
        mut record: Record,
    ) -> Result<Self, BackendError> {
        let checks = record.commands.subnet_check.is_some();
        if record.commands.start_anew() && !checks {
            record.served.values_mut().for_each(|served| served.is_sure = false);
        }
        let monitor = checks.then(|| Monitor::open(namespace)).transpose();
        let monitor = monitor.map_err(|source| BackendError::Kernel {
            operation: "follow the kernel's state".into(),
            source: source.into(),
        })?;
        Ok(Self {
            shell,
            uplink,
            record,
            failures: BTreeMap::new(),
            monitor,
            is_suspicious: checks,
            checking: None,
            next_check: Instant::now(),
        })
    }

    /// Runs the check for all that is thought to be served. If it is given up meanwhile, the next sync goes on with the peer whose
    /// check was running; the second time that counts as failed.
    async fn check(&mut self, wanted: &BTreeMap<Subnet, Target>, report: &mut SyncReport) {
        let Some(text) = self.record.commands.subnet_check.clone() else { return };
        if !self.is_suspicious {
            return;
        }
        let started = Instant::now();
        let given_up = self.checking;
        let from = given_up.map_or(Bound::Unbounded, |(subnet, _)| Bound::Included(subnet));
        for (subnet, served) in self.record.served.range_mut((from, Bound::Unbounded)) {
            if !served.is_sure || wanted.get(subnet) != Some(&served.target) {
                continue;
            }
            let times = given_up.filter(|(of, _)| of == subnet).map_or(0, |(_, times)| times);
            self.checking = Some((*subnet, times + 1));
            report.read += 1;
            let Target { data, .. } = &served.target;
            let failed = if times < 2 {
                let checked = self.shell.run(&text, &served.target.variables(), data).await;
                checked.err().map(|error| error.to_string())
            } else {
                Some("it took longer than a sync may".into())
            };
            if let Some(reason) = failed {
                served.is_sure = false;
                report.drifted += 1;
                report.repaired.add("peer", format!("{subnet}: SubnetCheckCommand: {reason}"));
            }
        }
        (self.is_suspicious, self.checking) = (false, None);
        // Others may change the kernel's state all the time: a tenth of the time is for checks.
        self.next_check = Instant::now() + started.elapsed() * 9 + BURST;
    }

    /// Removes a peer as it was served.
    async fn remove(&mut self, subnet: Subnet) -> Result<(), CommandError> {
        let served = self.record.served.get_mut(&subnet);
        if let (Some(served), Some(text)) = (served, &self.record.commands.subnet_remove) {
            served.is_sure = false;
            let Served { target, .. } = served;
            self.shell.run(text, &target.variables(), &target.data).await?;
        }
        Ok(())
    }

    async fn add(&mut self, subnet: Subnet, target: &Target) -> Result<(), CommandError> {
        let served = Served { target: target.clone(), is_sure: false };
        self.record.served.insert(subnet, served);
        if let Some(text) = &self.record.commands.subnet_add {
            self.shell.run(text, &target.variables(), &target.data).await?;
        }
        if let Some(served) = self.record.served.get_mut(&subnet) {
            served.is_sure = true;
        }
        Ok(())
    }

    async fn take(
        &mut self,
        step: Step,
        wanted: &BTreeMap<Subnet, Target>,
        report: &mut SyncReport,
    ) {
        let was_sure = self.record.served.get(&step.subnet()).is_some_and(|it| it.is_sure);
        let has_failed = self.failures.contains_key(&step.subnet());
        // Before it runs: if this is given up meanwhile, the next sync has the others' turn.
        self.fail(step.subnet());
        let (subnet, name, done) = match step {
            Step::Remove(subnet) => {
                // Of who was not added for sure there may be nothing to remove.
                let counts = was_sure || has_failed;
                let removed = self.remove(subnet).await;
                (subnet, "SubnetRemoveCommand", if counts { removed } else { Ok(()) })
            }
            Step::Add(subnet) => {
                (subnet, "SubnetAddCommand", self.add(subnet, &wanted[&subnet]).await)
            }
            Step::Replace(subnet) => {
                if let Err(error) = self.remove(subnet).await
                    && was_sure
                {
                    warn!(%subnet, %error, "SubnetRemoveCommand failed before SubnetAddCommand is run again");
                }
                (subnet, "SubnetAddCommand", self.add(subnet, &wanted[&subnet]).await)
            }
        };
        match (done, step) {
            (Ok(()), step) => {
                self.failures.remove(&subnet);
                match step {
                    Step::Remove(_) => report.removed += 1,
                    Step::Replace(_) => report.replaced += 1,
                    Step::Add(_) => report.added += 1,
                }
            }
            (Err(error), _) => {
                let operation = format!("run {name}");
                if let Some(failed) = self.failures.get_mut(&subnet) {
                    failed.fault = PeerFault::Kernel { operation, reason: error.to_string() };
                    failed.again = Instant::now() + failed.pause;
                }
            }
        }
        if let Step::Remove(_) = step {
            let attempts = self.failures.get(&subnet).map_or(0, |failed| failed.attempts);
            if attempts == 0 || attempts >= REMOVALS {
                self.record.served.remove(&subnet);
                if let Some(failed) = self.failures.remove(&subnet) {
                    warn!(%subnet, fault = %failed.fault, "giving up: what was made for this peer may be left");
                }
            }
        }
    }

    /// Counts an attempt that has not succeeded yet.
    fn fail(&mut self, subnet: Subnet) {
        let failed = self.failures.entry(subnet).or_insert_with(|| Failed {
            fault: PeerFault::Kernel {
                operation: "run the peer's commands".into(),
                reason: "they took longer than a sync may".into(),
            },
            attempts: 0,
            backoff: Backoff::new(SHORTEST, LONGEST),
            pause: Duration::ZERO,
            again: Instant::now(),
        });
        failed.attempts += 1;
        failed.pause = failed.backoff.after_failure(u64::MAX);
        failed.again = Instant::now() + self.shell.timeout + failed.pause;
    }

    fn save(&self) -> Result<(), BackendError> {
        self.record.save().map_err(|error| unwritable("write", self.record.path(), error))
    }
}

#[async_trait]
impl Network for ExtensionNetwork {
    fn mtu(&self) -> u32 {
        self.uplink.current().mtu
    }

    async fn sync(&mut self, peers: &Peers) -> Result<SyncReport, BackendError> {
        let mut report = SyncReport::default();
        let mut wanted = BTreeMap::new();
        for peer in peers.iter() {
            match Target::peer(peers.own(), peer) {
                Ok(target) => drop(wanted.insert(peer.subnet, target)),
                Err(fault) => {
                    let address = peer.attrs.address();
                    report.problems.push(PeerProblem::new(peer.subnet, address, fault));
                }
            }
        }
        self.check(&wanted, &mut report).await;
        let all = steps(&wanted, &self.record.served);
        let now = Instant::now();
        let is_due = |subnet: &Subnet| self.failures.get(subnet).is_none_or(|it| it.again <= now);
        let due: Vec<_> = all.iter().copied().filter(|step| is_due(&step.subnet())).collect();
        if !due.is_empty() {
            // If the process ends now, the next one knows whom it cannot be sure of.
            let mut record = self.record.served.clone();
            for step in &due {
                match step {
                    Step::Add(subnet) => {
                        let target = wanted[subnet].clone();
                        record.insert(*subnet, Served { target, is_sure: false });
                    }
                    Step::Remove(subnet) | Step::Replace(subnet) => {
                        record.entry(*subnet).and_modify(|served| served.is_sure = false);
                    }
                }
            }
            let known = std::mem::replace(&mut self.record.served, record);
            let saved = self.save();
            self.record.served = known;
            saved?;
            for step in due {
                self.take(step, &wanted, &mut report).await;
            }
            self.save()?;
        }
        let pending: Vec<_> = all.iter().map(Step::subnet).collect();
        self.failures.retain(|subnet, _| pending.contains(subnet));
        for (subnet, failed) in &self.failures {
            let address = peers.get(subnet).and_then(|peer| peer.attrs.address());
            report.problems.push(PeerProblem::new(*subnet, address, failed.fault.clone()));
        }
        report.problems.sort_by_key(|problem| problem.peer);
        Ok(report)
    }

    async fn drifted(&mut self) -> Result<(), BackendError> {
        let Some(monitor) = &mut self.monitor else {
            return self.uplink.changed().await.map(drop);
        };
        if !self.is_suspicious {
            tokio::select! {
                notice = monitor.next() => {
                    self.is_suspicious = true;
                    notice.map_err(|source| BackendError::Kernel {
                        operation: "follow the kernel's state".into(),
                        source: source.into(),
                    })?;
                }
                changed = self.uplink.changed() => return changed.map(drop),
            }
        }
        sleep_until(self.next_check).await;
        Ok(())
    }

    async fn teardown(mut self: Box<Self>) -> Result<(), BackendError> {
        take_down(&self.shell.namespace, &mut self.record).await
    }
}

/// How often a removal that fails is tried: what it should remove may be gone for long.
const REMOVALS: u32 = 5;
/// The waits between attempts.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// What is changed within this time is checked once.
const BURST: Duration = Duration::from_millis(50);
