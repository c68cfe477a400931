//! bpf(2): maps and programs as owned descriptors. The only unsafe code of the engine.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    libc,
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
};

/// A map, with the sizes that every access to it has to have.
#[derive(Debug)]
pub(super) struct Map {
    fd: OwnedFd,
    key_bytes: usize,
    /// All processors' values together, if each has its own.
    value_bytes: usize,
}

/// What a map is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct MapShape {
    /// `BPF_MAP_TYPE_*`.
    pub(super) kind: u32,
    pub(super) key_bytes: u32,
    pub(super) value_bytes: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

/// A loaded program.
#[derive(Debug)]
pub(super) struct Program(OwnedFd);

/// Where the kernel runs a program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ProgramKind {
    /// On packets that leave by a route.
    LwtXmit,
    /// On packets that a filter looks at.
    SchedCls,
}

/// Why the kernel did not take a program.
#[derive(Debug)]
pub(super) struct Rejected {
    pub(super) source: io::Error,
    /// The verifier's last words.
    pub(super) log: String,
}

impl Map {
    pub(super) fn create(name: &str, shape: MapShape) -> io::Result<Self> {
        let mut attr = Attr::default();
        let MapShape { kind, key_bytes, value_bytes, max_entries, flags } = shape;
        for (at, number) in
            [kind, key_bytes, value_bytes, max_entries, flags].into_iter().enumerate()
        {
            attr.put_u32(4 * at, number);
        }
        attr.put_name(28, name);
        // SAFETY: creating a map takes no addresses.
        let create = |attr: &mut Attr| unsafe { bpf(MAP_CREATE, attr) };
        let created = create(&mut attr).or_else(|error| {
            // Before Linux 5.11 maps count as locked memory.
            let refused = error.raw_os_error() == Some(libc::EPERM);
            if refused && setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok()
            {
                return create(&mut attr);
            }
            Err(error)
        });
        Self::new(descriptor(created?), shape)
    }

    /// The map with this number, if there is one.
    pub(super) fn by_id(id: u32) -> io::Result<(Self, String)> {
        let fd = open_by_id(MAP_GET_FD_BY_ID, id)?;
        let info: Info = info(fd.as_fd())?;
        let shape = MapShape {
            kind: info.u32(0),
            key_bytes: info.u32(8),
            value_bytes: info.u32(12),
            max_entries: info.u32(16),
            flags: info.u32(20),
        };
        Ok((Self::new(fd, shape)?, info.name(24)))
    }

    fn new(fd: OwnedFd, shape: MapShape) -> io::Result<Self> {
        let value_bytes = shape.value_bytes as usize;
        let value_bytes = match shape.kind {
            MAP_TYPE_PERCPU_ARRAY => value_bytes.next_multiple_of(8) * processors()?,
            // What we never make, and what has more per-processor values than we know.
            MAP_TYPE_ARRAY | MAP_TYPE_LPM_TRIE => value_bytes,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(Self { fd, key_bytes: shape.key_bytes as usize, value_bytes })
    }

    /// What stands at `key`.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_bytes];
        let mut attr = self.element(key);
        attr.put_u64(16, value.as_mut_ptr() as u64);
        // SAFETY: the kernel reads `key_bytes` at the key's address, which `element` has checked, and writes `value_bytes` at
        // the value's, which is that long.
        match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(error) => missing(error).map(|()| None),
        }
    }

    /// Puts `value` at `key`, in the place of what was there, at once.
    pub(super) fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!(value.len(), self.value_bytes, "a value of this map");
        let mut attr = self.element(key);
        attr.put_u64(16, value.as_ptr() as u64);
        // SAFETY: the kernel reads `key_bytes` and `value_bytes` at two addresses, both checked to be that long.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Removes what is at `key`, if anything.
    pub(super) fn remove(&self, key: &[u8]) -> io::Result<()> {
        let mut attr = self.element(key);
        // SAFETY: the kernel reads `key_bytes` at the key's address, which `element` has checked.
        match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
            Ok(_) => Ok(()),
            Err(error) => missing(error),
        }
    }

    /// The key behind `key` in the kernel's order, or the first.
    pub(super) fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.key_bytes];
        let mut attr = match key {
            Some(key) => self.element(key),
            None => self.attr(),
        };
        attr.put_u64(16, next.as_mut_ptr() as u64);
        // SAFETY: the kernel reads `key_bytes` at the key's address, if there is one, and writes as many at the other's; both
        // are that long.
        match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(_) => Ok(Some(next)),
            Err(error) => missing(error).map(|()| None),
        }
    }

    fn attr(&self) -> Attr {
        let mut attr = Attr::default();
        attr.put_u32(0, self.fd.as_raw_fd() as u32);
        attr
    }

    fn element(&self, key: &[u8]) -> Attr {
        assert_eq!(key.len(), self.key_bytes, "a key of this map");
        let mut attr = self.attr();
        attr.put_u64(8, key.as_ptr() as u64);
        attr
    }
}

impl AsRawFd for Map {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Program {
    /// Has the kernel verify and take a program of these instructions, in which maps stand by their descriptors.
    pub(super) fn load(
        kind: ProgramKind,
        name: &str,
        instructions: &[u8],
        license: &str,
    ) -> Result<Self, Rejected> {
        let license: Vec<u8> = license.bytes().chain([0]).collect();
        let mut attr = Attr::default();
        attr.put_u32(
            0,
            match kind {
                ProgramKind::LwtXmit => PROG_TYPE_LWT_XMIT,
                ProgramKind::SchedCls => PROG_TYPE_SCHED_CLS,
            },
        );
        attr.put_u32(4, (instructions.len() / INSTRUCTION_BYTES) as u32);
        attr.put_u64(8, instructions.as_ptr() as u64);
        attr.put_u64(16, license.as_ptr() as u64);
        attr.put_name(48, name);
        // SAFETY: the kernel reads the instructions, as many whole ones as the slice has, and the licence up to its final zero.
        let quiet = match unsafe { bpf(PROG_LOAD, &mut attr) } {
            Ok(fd) => return Ok(Self(descriptor(fd))),
            Err(source) => source,
        };
        let mut log = vec![0; LOG_BYTES];
        attr.put_u32(24, 1);
        attr.put_u32(28, log.len() as u32);
        attr.put_u64(32, log.as_mut_ptr() as u64);
        // SAFETY: as above, and the kernel writes at most `log.len()` bytes into the log.
        match unsafe { bpf(PROG_LOAD, &mut attr) } {
            Ok(fd) => Ok(Self(descriptor(fd))),
            Err(_) => {
                let text = String::from_utf8_lossy(&log);
                let text = text.trim_end_matches('\0').trim_end();
                let last: Vec<_> = text.lines().rev().take(LOG_LINES).collect();
                let log = last.into_iter().rev().collect::<Vec<_>>().join("; ");
                Err(Rejected { source: quiet, log })
            }
        }
    }

    /// The program with this number, if there is one.
    pub(super) fn by_id(id: u32) -> io::Result<Self> {
        open_by_id(PROG_GET_FD_BY_ID, id).map(Self)
    }

    /// Its number.
    pub(super) fn id(&self) -> io::Result<u32> {
        Ok(info(self.0.as_fd())?.u32(4))
    }

    /// The numbers of the maps that it uses.
    pub(super) fn maps(&self) -> io::Result<Vec<u32>> {
        let mut ids = [0_u32; MAX_MAPS];
        let mut wanted = Info::default();
        wanted.0[52..56].copy_from_slice(&(MAX_MAPS as u32).to_ne_bytes());
        wanted.0[56..64].copy_from_slice(&(ids.as_mut_ptr() as u64).to_ne_bytes());
        // SAFETY: the one address in `wanted` is that of `ids`, with the number of its elements beside it.
        let info = unsafe { info_into(self.0.as_fd(), wanted) }?;
        let count = (info.u32(52) as usize).min(MAX_MAPS);
        Ok(ids[..count].to_vec())
    }
}

impl AsRawFd for Program {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// `union bpf_attr`, as far as it is used. The kernel takes a longer one whose rest is zero.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Attr([u8; ATTR_BYTES]);

impl Default for Attr {
    fn default() -> Self {
        Self([0; ATTR_BYTES])
    }
}

impl Attr {
    fn put_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    /// The kernel takes names of up to 15 bytes.
    fn put_name(&mut self, at: usize, name: &str) {
        let name = &name.as_bytes()[..name.len().min(NAME_BYTES - 1)];
        self.0[at..at + name.len()].copy_from_slice(name);
    }
}

/// `struct bpf_map_info` or `struct bpf_prog_info`, as far as it is used.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Info([u8; INFO_BYTES]);

impl Default for Info {
    fn default() -> Self {
        Self([0; INFO_BYTES])
    }
}

impl Info {
    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn name(&self, at: usize) -> String {
        let name = &self.0[at..at + NAME_BYTES];
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
        String::from_utf8_lossy(&name[..end]).into_owned()
    }
}

fn info(fd: BorrowedFd<'_>) -> io::Result<Info> {
    // SAFETY: there are no addresses in it.
    unsafe { info_into(fd, Info::default()) }
}

/// # Safety
///
/// Addresses in `info` must be valid for the kernel to write as much to as the numbers beside them say.
unsafe fn info_into(fd: BorrowedFd<'_>, mut info: Info) -> io::Result<Info> {
    let mut attr = Attr::default();
    attr.put_u32(0, fd.as_raw_fd() as u32);
    attr.put_u32(4, INFO_BYTES as u32);
    attr.put_u64(8, info.0.as_mut_ptr() as u64);
    // SAFETY: the kernel writes at most `INFO_BYTES` into `info`, and where the caller lets it.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

fn open_by_id(command: libc::c_long, id: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::default();
    attr.put_u32(0, id);
    // SAFETY: opening by number takes no addresses.
    unsafe { bpf(command, &mut attr) }.map(descriptor)
}

/// # Safety
///
/// Addresses in `attr` must be valid for what `command` reads and writes there.
unsafe fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<RawFd> {
    let attr: *mut Attr = attr;
    // SAFETY: `attr` is `ATTR_BYTES` long and writable; the rest is the caller's.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attr, ATTR_BYTES) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value as RawFd),
    }
}

/// The descriptor that a command has just made.
fn descriptor(fd: RawFd) -> OwnedFd {
    // SAFETY: it comes from the kernel as new, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn missing(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(error) }
}

/// How many processors the kernel keeps values for: those that could be there.
fn processors() -> io::Result<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    last_processor(&text).map(|last| last + 1).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The highest number in a list such as `0-3,8`.
fn last_processor(list: &str) -> Option<usize> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

/// Enough for all commands, whose attributes end earlier.
const ATTR_BYTES: usize = 128;
const INFO_BYTES: usize = 80;
const INSTRUCTION_BYTES: usize = 8;
/// `BPF_OBJ_NAME_LEN`.
const NAME_BYTES: usize = 16;
/// More than any program of ours uses.
const MAX_MAPS: usize = 16;
/// What the verifier says about programs of our size fits.
const LOG_BYTES: usize = 1 << 20;
/// The verifier says at the end what it did not like.
const LOG_LINES: usize = 3;

// linux/bpf.h
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const PROG_LOAD: libc::c_long = 5;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const MAP_GET_FD_BY_ID: libc::c_long = 14;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_PERCPU_ARRAY: u32 = 6;
const MAP_TYPE_LPM_TRIE: u32 = 11;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_LWT_XMIT: u32 = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_processor_is_the_last_of_the_list() {
        assert_eq!(last_processor("0-3\n"), Some(3));
        assert_eq!(last_processor("0\n"), Some(0));
        assert_eq!(last_processor("0-3,8-11\n"), Some(11));
        assert_eq!(last_processor("\n"), None);
    }

    #[test]
    fn a_long_name_is_cut() {
        let mut attr = Attr::default();
        attr.put_name(28, "a_name_of_twenty_six_bytes");
        assert_eq!(&attr.0[28..44], b"a_name_of_twent\0");
    }
}
