//! The device that packets of pods come out of and packets of peers go into.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
};

use flannel_netlink::Namespace;
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::segment::Offload;

/// An attached TUN device: one queue for each worker.
#[derive(Debug)]
pub struct Tun {
    /// Its queues. The kernel spreads flows over them.
    pub queues: Vec<Queue>,
    /// Whether large TCP packets pass the device as one.
    pub tcp: bool,
    /// Whether large UDP packets do.
    pub udp: bool,
    /// Why something is not used.
    pub missing: Vec<String>,
}

/// One queue of the device.
pub struct Queue {
    device: SyncDevice,
    /// Each packet is preceded by an [`Offload`].
    has_offload: bool,
}

impl Tun {
    /// Attaches to the device of this name, which is made if it is not there, and stays when nobody is attached.
    ///
    /// With less where the kernel has less: one queue, no offload.
    pub fn attach(namespace: &Namespace, name: &str, queues: usize) -> io::Result<Self> {
        namespace.run(|| attach_with_less(name, queues)).map_err(io::Error::other)?
    }
}

fn attach_with_less(name: &str, queues: usize) -> io::Result<Tun> {
    let mut missing = Vec::new();
    let device = match open(name, true, true) {
        Ok(device) => device,
        Err(error) if error.raw_os_error() == Some(EINVAL) => match open(name, false, true) {
            Ok(device) => {
                missing.push(format!("several queues of the device: {error}"));
                return finish(device, 1, true, missing);
            }
            Err(_) => {
                let device = open(name, false, false)?;
                missing.push(format!("large packets through the device: {error}"));
                return finish(device, 1, false, missing);
            }
        },
        Err(error) => return Err(error),
    };
    finish(device, queues, true, missing)
}

fn open(name: &str, multi_queue: bool, offload: bool) -> io::Result<SyncDevice> {
    DeviceBuilder::new()
        .name(name)
        .inherit_enable_state()
        .with(|builder| {
            builder.multi_queue(multi_queue).offload(offload);
        })
        .build_sync()
}

fn finish(
    device: SyncDevice,
    queues: usize,
    has_offload: bool,
    mut missing: Vec<String>,
) -> io::Result<Tun> {
    device.persist()?;
    let udp = has_offload && device.udp_gso();
    if has_offload && !udp {
        missing.push("large UDP packets through the device: needs Linux 6.2".into());
    }
    let mut devices = Vec::with_capacity(queues);
    for _ in 1..queues {
        devices.push(device.try_clone()?);
    }
    devices.push(device);
    let queue = |device: SyncDevice| {
        device.set_nonblocking(true)?;
        Ok(Queue { device, has_offload })
    };
    let queues = devices.into_iter().map(queue).collect::<io::Result<_>>()?;
    Ok(Tun { queues, tcp: has_offload, udp, missing })
}

impl Queue {
    /// Bytes to leave free before a packet that is read.
    pub const HEADROOM: usize = Offload::LEN;

    /// Reads one packet to `buffer` behind [`HEADROOM`](Self::HEADROOM), and returns what the kernel says of it and its length.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<(Offload, usize)> {
        if !self.has_offload {
            let len = rustix::io::read(&self.device, &mut buffer[Self::HEADROOM..])?;
            return Ok((Offload::default(), len));
        }
        let len = rustix::io::read(&self.device, &mut *buffer)?;
        let header = buffer.first_chunk().expect("buffers have headroom");
        Ok((Offload::parse(header), len.saturating_sub(Self::HEADROOM)))
    }

    /// Writes one packet, given in parts.
    pub fn write(&self, offload: &Offload, parts: &[&[u8]]) -> io::Result<()> {
        let header = offload.bytes();
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        slices[0] = IoSlice::new(&header);
        for (slice, part) in slices[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        let slices = &slices[..=parts.len().min(MAX_SLICES - 1)];
        let slices = if self.has_offload { slices } else { &slices[1..] };
        rustix::io::writev(&self.device, slices)?;
        Ok(())
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("has_offload", &self.has_offload).finish_non_exhaustive()
    }
}

/// The device's own header, the packet's headers and its parts.
const MAX_SLICES: usize = 2 + crate::gro::MAX_PARTS;
const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();
