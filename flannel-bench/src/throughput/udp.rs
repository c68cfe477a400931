//! Small packets, sent by threads that do nothing else.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use flannel_testbed::Endpoint;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use tokio::{task::spawn_blocking, time::Instant};

/// Sends as many packets as go from `from` to `to`, and returns how many were received per second.
pub(super) async fn flood(from: &Endpoint, to: &Endpoint, duration: Duration) -> Result<f64> {
    let (sender, receiver) = pair(from, to).context("cannot open sockets for a flood")?;
    let done = Arc::new(AtomicBool::new(false));
    let receiver = {
        let done = Arc::clone(&done);
        spawn_blocking(move || count(&receiver, &done))
    };
    let sent = spawn_blocking(move || send(&sender, duration)).await?;
    done.store(true, Ordering::Relaxed);
    let received = receiver.await?.context("cannot receive a flood")?;
    sent.context("cannot send a flood")?;
    Ok(received as f64 / duration.as_secs_f64())
}

/// Sends packets there and back, one after the other, and returns how many seconds each took.
pub(super) async fn round_trips(from: &Endpoint, to: &Endpoint, number: u32) -> Result<Vec<f64>> {
    let (sender, receiver) = pair(from, to).context("cannot open sockets for round trips")?;
    let done = Arc::new(AtomicBool::new(false));
    let echo = {
        let done = Arc::clone(&done);
        spawn_blocking(move || on_first_processor(|| echo(&receiver, &done)))
    };
    let times = spawn_blocking(move || on_first_processor(|| time(&sender, number))).await?;
    done.store(true, Ordering::Relaxed);
    echo.await?.context("cannot send answers")?;
    times.context("cannot time round trips")
}

/// A socket at each end; the first is connected to the second.
fn pair(from: &Endpoint, to: &Endpoint) -> io::Result<(UdpSocket, UdpSocket)> {
    let open = |end: &Endpoint| {
        let ip = end.ips().next().ok_or(ErrorKind::AddrNotAvailable)?;
        let address = SocketAddr::new(ip, 0);
        let socket =
            end.namespace().run(|| UdpSocket::bind(address)).map_err(io::Error::other)??;
        socket.set_read_timeout(Some(PATIENCE))?;
        io::Result::Ok(socket)
    };
    let receiver = open(to)?;
    let sender = open(from)?;
    sender.connect(receiver.local_addr()?)?;
    Ok((sender, receiver))
}

fn send(socket: &UdpSocket, duration: Duration) -> io::Result<()> {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        for _ in 0..BURST {
            match socket.send(&PACKET) {
                // The queue of the device is full: that is what a flood is for.
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => {}
                sent => drop(sent?),
            }
        }
    }
    Ok(())
}

fn count(socket: &UdpSocket, done: &AtomicBool) -> io::Result<u64> {
    let (mut buffer, mut received) = ([0; PACKET.len()], 0);
    // What is still waiting when the sender is done took its time, and counts no more.
    while !done.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => {
                result?;
                received += 1;
            }
        }
    }
    Ok(received)
}

fn echo(socket: &UdpSocket, done: &AtomicBool) -> io::Result<()> {
    let mut buffer = [0; PACKET.len()];
    while !done.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => {
                let (length, from) = result?;
                socket.send_to(&buffer[..length], from)?;
            }
        }
    }
    Ok(())
}

fn time(socket: &UdpSocket, number: u32) -> io::Result<Vec<f64>> {
    let mut buffer = [0; PACKET.len()];
    let mut times = Vec::with_capacity(number as usize);
    let mut lost = 0;
    while times.len() < number as usize {
        let start = Instant::now();
        socket.send(&PACKET)?;
        match socket.recv(&mut buffer) {
            Ok(_) => times.push(start.elapsed().as_secs_f64()),
            Err(error) if error.kind() == ErrorKind::WouldBlock && lost < LOST => lost += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(times)
}

/// Runs `work` where both ends of a round trip run, so that it is not a matter of luck whether another processor has to be woken.
fn on_first_processor<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let this_thread = Pid::from_raw(0);
    let before = sched_getaffinity(this_thread)?;
    let first = (0..CpuSet::count()).find(|number| before.is_set(*number).unwrap_or(false));
    let mut only = CpuSet::new();
    only.set(first.unwrap_or(0))?;
    sched_setaffinity(this_thread, &only)?;
    let result = work();
    sched_setaffinity(this_thread, &before)?;
    result
}

/// 64 bytes of payload.
const PACKET: [u8; 64] = [0x5a; 64];

/// So that the clock is not asked for every packet.
const BURST: u32 = 32;

/// A receiver looks this often whether the sender is done.
const PATIENCE: Duration = Duration::from_millis(200);

/// linux/errno.h
const ENOBUFS: i32 = 105;

/// So many round trips may end in nothing, each of which takes [`PATIENCE`].
const LOST: u32 = 10;
