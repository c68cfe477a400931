//! What a person reads of a node in the log.

use std::fmt::{self, Write};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::{DefaultGuard, set_default},
};

use super::*;
use crate::{Fault, FaultKind, PeerFault, PeerProblem, SyncReport, Warning, testing::MockNetwork};

/// Keeps what is logged, a line each.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

/// A line: the message, then the fields.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let shown = match field.name() {
            "message" => format!("{value:?}"),
            name => format!("{name}={value:?}"),
        };
        write!(self.0, " {shown}").unwrap();
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("flannel_core::node") && *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl Log {
    fn begin() -> (Self, DefaultGuard) {
        let log = Self::default();
        (log.clone(), set_default(log))
    }

    /// What was logged since this was asked last.
    fn lines(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn a_problem_is_logged_when_it_begins_and_when_it_is_over_and_a_sync_when_it_writes() {
    let (log, _guard) = Log::begin();
    let bad = || {
        let mut report = SyncReport { added: 3, ..SyncReport::default() };
        report.faults.push(Fault::new(FaultKind::KernelRefused, "route", "add routes", "no"));
        report.warnings.push(Warning::new("firewall", "it is slow"));
        let fault = PeerFault::BadData { detail: "x".into() };
        let problem =
            |n| PeerProblem::new(lease(&format!("10.3.{n}.0-24"), n).subnet, None, fault.clone());
        report.problems = (2..12).map(problem).collect();
        report
    };
    let again = SyncReport { added: 0, ..bad() };
    let mut reports = vec![bad(), again, bad(), SyncReport::default()].into_iter();
    let mut backend = MockBackend::new();
    backend.expect_advertise().returning(|_| Ok(attrs(1)));
    let script = Mutex::new(Some(move || Ok(reports.next().unwrap_or_default())));
    backend.expect_start().returning(move |_| {
        let mut network = MockNetwork::new();
        let mut next = script.lock().unwrap().take().unwrap();
        network.expect_mtu().return_const(1500_u32);
        network.expect_sync().returning(move |_| next());
        network.expect_drifted().returning(|| Ok(()));
        Ok(Box::new(network))
    });
    let (store, events) = store(&Held::new(OWN));
    let node = node(store, backend);
    let mut handle = node.handle();
    tokio::spawn(node.run());
    events.send(Ok(LeaseEvent::reset(vec![lease(OWN, 1)]))).unwrap();
    handle.wait_for(|status| status.syncs == 5).await.unwrap();
    let each = |text: &'static str| (2..10).map(move |n| format!("{text} peer=10.3.{n}.0-24"));
    let line = |text: &str| [text.to_owned()].into_iter();
    let synced = || line("INFO synced peers=0 added=3 replaced=0 removed=0");
    let expected = line("INFO lease held subnet=10.3.1.0-24")
        .chain(synced())
        .chain(line("WARN route: cannot add routes: no; retrying"))
        .chain(line("WARN firewall: it is slow"))
        .chain(each("WARN peer not served: its lease cannot be used: x"))
        .chain(line("WARN and 2 more problems of peers"))
        .chain(synced())
        .chain(line("INFO the data path is as it should be again"))
        .chain(each("INFO peer served again, or gone"))
        .chain(line("INFO and 2 more peers"));
    assert_eq!(log.lines(), expected.collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn what_is_published_is_logged_when_it_is_another_and_not_with_each_renewal() {
    let (log, _guard) = Log::begin();
    let (store, events) = store(&Held::new(OWN));
    let backend = fake();
    serving((store, &events), backend.clone(), vec![lease(OWN, 1)]).await;
    backend.set_address([192, 0, 2, 9].into());
    sleep(Duration::from_secs(300)).await;
    let lines = log.lines();
    let published: Vec<_> = lines.iter().filter(|it| it.starts_with("INFO published")).collect();
    assert!(matches!(&published[..], [line] if line.contains("192.0.2.9")), "{lines:?}");
}
