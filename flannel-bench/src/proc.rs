//! What `/proc` and the kernel's clocks say about processes and the machine.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result};
use nix::{time::ClockId, unistd::Pid};
use serde_json::{Value, json};

/// What a process uses now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Usage {
    /// `VmRSS`, bytes.
    pub(crate) resident: u64,
    /// `VmHWM`, bytes: the most that was resident so far.
    pub(crate) peak: u64,
    pub(crate) threads: u64,
}

/// Reads `/proc/PID/status`.
pub(crate) fn usage(pid: u32) -> Result<Usage> {
    let text = read(&format!("/proc/{pid}/status"))?;
    parse_usage(&text).with_context(|| format!("cannot understand /proc/{pid}/status"))
}

/// Processor time that all threads of a process used so far, those that ended too. Exact to the nanosecond.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let context = || format!("cannot read the processor time of process {pid}");
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed()));
    Ok(clock.and_then(ClockId::now).with_context(context)?.into())
}

/// How often the threads of a process went to sleep by themselves: each is a wakeup.
pub(crate) fn wakeups(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))? {
        // A thread may end meanwhile.
        if let Ok(text) = fs::read_to_string(task?.path().join("status")) {
            sum += field(&text, "voluntary_ctxt_switches:").unwrap_or(0);
        }
    }
    Ok(sum)
}

/// Bytes that came in by a device of the network namespace of a process so far, with their headers.
pub(crate) fn received(pid: u32, device: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/net/dev");
    parse_received(&read(&path)?, device).with_context(|| format!("there is no {device} in {path}"))
}

/// Processor time that the whole machine spent on anything so far, from `/proc/stat`, in steps of 10 ms.
pub(crate) fn machine_busy() -> Result<Duration> {
    let text = read("/proc/stat")?;
    parse_busy(&text).context("cannot understand /proc/stat")
}

/// What figures are to be read with.
pub(crate) fn machine() -> Value {
    let text = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let load = text("/proc/loadavg");
    json!({
        "kernel": text("/proc/sys/kernel/osrelease"),
        "cpus": thread::available_parallelism().map_or(0, usize::from),
        "load": load.split(' ').next().and_then(|load| load.parse::<f64>().ok()),
    })
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

fn parse_usage(status: &str) -> Option<Usage> {
    Some(Usage {
        resident: field(status, "VmRSS:")?.checked_mul(1024)?,
        peak: field(status, "VmHWM:")?.checked_mul(1024)?,
        threads: field(status, "Threads:")?,
    })
}

/// The number behind a name at the start of a line.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The first number behind a device's name.
fn parse_received(dev: &str, device: &str) -> Option<u64> {
    let line =
        dev.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User, nice, system, then idle and waiting, then interrupts, soft interrupts and stolen time.
fn parse_busy(stat: &str) -> Option<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _waiting, interrupts, soft, ..] = ticks[..] else {
        return None;
    };
    let parts = [user, nice, system, interrupts, soft];
    let sum = parts.into_iter().try_fold(0_u64, u64::checked_add)?;
    Some(Duration::from_secs_f64(sum as f64 / TICKS_PER_SECOND))
}

/// `USER_HZ`, which is 100 on every architecture that Linux still has, whatever its `HZ` is.
const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATUS: &str = "Name:\tx\nVmHWM:\t    5432 kB\nVmRSS:\t    4321 kB\nThreads:\t2\n\
                          voluntary_ctxt_switches:\t17\nnonvoluntary_ctxt_switches:\t4\n";

    #[test]
    fn a_status_is_read() {
        let usage = Usage { resident: 4321 * 1024, peak: 5432 * 1024, threads: 2 };
        assert_eq!(parse_usage(STATUS), Some(usage));
        assert_eq!(field(STATUS, "voluntary_ctxt_switches:"), Some(17));
        assert_eq!(parse_usage("Name:\tx\nThreads:\t2\n"), None, "a kernel thread has no memory");
    }

    #[test]
    fn idle_and_waiting_time_do_not_count() {
        let stat = "cpu  100 20 300 99999 8888 40 50 0 0 0\ncpu0 1 1 1 1 1 1 1\n";
        assert_eq!(parse_busy(stat), Some(Duration::from_millis(5100)));
        assert_eq!(parse_busy("cpu  1 2 3\n"), None);
    }

    #[test]
    fn a_device_is_found_by_its_whole_name() {
        let dev = "Inter-|   Receive\n face |bytes    packets\n eth01: 9 1 0\n  eth0: 1234  5 0\n";
        assert_eq!(parse_received(dev, "eth0"), Some(1234));
        assert_eq!(parse_received(dev, "eth"), None);
    }

    #[test]
    fn this_process_is_there() {
        let pid = std::process::id();
        let usage = usage(pid).unwrap();
        assert!(usage.resident > 0 && usage.peak >= usage.resident && usage.threads > 0);
        assert!(cpu_time(pid).unwrap() > Duration::ZERO);
        wakeups(pid).unwrap();
        assert!(machine_busy().unwrap() > Duration::ZERO);
        received(pid, "lo").unwrap();
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(cpu [0-9 ]{0,60}|VmRSS:[0-9 ]{0,30}\nVmHWM:[0-9 ]{0,30}\nThreads: [0-9]{0,22}|\\PC{0,60})") {
            let _ = (parse_usage(&text), parse_busy(&text), field(&text, "Threads:"));
            let _ = parse_received(&text, "cpu ");
        }
    }
}
