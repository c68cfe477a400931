//! Filters as messages of traffic control.

use std::os::fd::RawFd;

use flannel_netlink::{Message, Request, push_attribute};

/// A filter that is there.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Filter {
    /// The index of the device.
    pub link: u32,
    /// Where it stands among those of its priority.
    pub handle: u32,
    /// Those of a lower number look at packets first.
    pub priority: u16,
    /// Its program's number, if it is a BPF filter and the kernel says so.
    pub program: Option<u32>,
    /// Its label, if it is a BPF filter.
    pub label: Option<String>,
}

impl Filter {
    /// Reads `RTM_NEWTFILTER`; `None` for anything else and for what only heads a list of filters.
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        if message.kind != RTM_NEWTFILTER {
            return None;
        }
        let (header, attributes) = message.split(HEADER)?;
        let number = |at: usize| header.get(at..)?.first_chunk().map(|it| u32::from_ne_bytes(*it));
        let handle = number(8).filter(|handle| *handle != 0)?;
        let mut filter = Self {
            link: number(4)?,
            handle,
            priority: (number(16)? >> 16) as u16,
            program: None,
            label: None,
        };
        let (mut is_bpf, mut options) = (false, None);
        for attribute in attributes {
            match attribute.kind {
                TCA_KIND => is_bpf = attribute.text() == Some(BPF),
                TCA_OPTIONS => options = Some(attribute),
                _ => {}
            }
        }
        if let Some(options) = options.filter(|_| is_bpf) {
            for option in options.nested() {
                match option.kind {
                    TCA_BPF_ID => filter.program = option.u32(),
                    TCA_BPF_NAME => filter.label = option.text().map(str::to_owned),
                    _ => {}
                }
            }
        }
        Some(filter)
    }
}

/// Lists the filters of a device, of packets that come in or of those that go out.
pub fn list(link: u32, direction: Direction) -> Request {
    Request::new(RTM_GETTFILTER, 0, &header(link, 0, direction.parent(), 0))
}

/// Which packets of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// Those that come in.
    In,
    /// Those that go out.
    Out,
}

impl Direction {
    const fn parent(self) -> u32 {
        match self {
            Self::In => CLSACT_MAJOR | 0xfff2,
            Self::Out => CLSACT_MAJOR | 0xfff3,
        }
    }
}

/// Makes the clsact qdisc, which filters hang on; the kernel refuses if there is one.
pub fn create_clsact(link: u32) -> Request {
    clsact(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, link)
}

/// Deletes the clsact qdisc, and whatever hangs on it.
pub fn delete_clsact(link: u32) -> Request {
    clsact(RTM_DELQDISC, 0, link)
}

/// Has the program of this descriptor look at all packets of `link` in this direction, at once in the place of what stands there.
pub fn replace(
    link: u32,
    direction: Direction,
    handle: u32,
    program: RawFd,
    label: &str,
) -> Request {
    let mut options = Vec::new();
    push_attribute(&mut options, TCA_BPF_FD, &program.to_ne_bytes());
    push_attribute(&mut options, TCA_BPF_NAME, format!("{label}\0").as_bytes());
    push_attribute(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    let mut body = header(link, handle, direction.parent(), place());
    push_attribute(&mut body, TCA_KIND, format!("{BPF}\0").as_bytes());
    push_attribute(&mut body, TCA_OPTIONS | NLA_F_NESTED, &options);
    Request::new(RTM_NEWTFILTER, NLM_F_CREATE, &body)
}

/// Deletes the filter of ours with this handle.
pub fn delete(link: u32, direction: Direction, handle: u32) -> Request {
    let mut body = header(link, handle, direction.parent(), place());
    push_attribute(&mut body, TCA_KIND, format!("{BPF}\0").as_bytes());
    Request::new(RTM_DELTFILTER, 0, &body)
}

fn clsact(kind: u16, flags: u16, link: u32) -> Request {
    let mut body = header(link, CLSACT_MAJOR, CLSACT, 0);
    push_attribute(&mut body, TCA_KIND, b"clsact\0");
    Request::new(kind, flags, &body)
}

/// `struct tcmsg`.
fn header(link: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for number in [link, handle, parent, info] {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    bytes
}

/// Our priority, and all protocols.
fn place() -> u32 {
    u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be())
}

/// Behind most others', who may want to refuse packets before we take them; nobody's by convention. Each network has its port as
/// handle here.
pub const PRIORITY: u16 = 8285;

const HEADER: usize = 20;
const BPF: &str = "bpf";
const CLSACT_MAJOR: u32 = 0xffff_0000;
const CLSACT: u32 = 0xffff_fff1;
const ETH_P_ALL: u16 = 3;
// linux/netlink.h
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLA_F_NESTED: u16 = 0x8000;
// linux/rtnetlink.h
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
// linux/pkt_cls.h
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_asked_for_is_read() {
        let request = replace(7, Direction::Out, 8285, 9, "label");
        let filter = Filter::parse(&request.message().unwrap()).unwrap();
        let expected = Filter {
            link: 7,
            handle: 8285,
            priority: PRIORITY,
            program: None,
            label: Some("label".into()),
        };
        assert_eq!(filter, expected);
    }

    #[test]
    fn a_filter_of_another_kind_has_no_program() {
        let mut body = header(7, 1, Direction::In.parent(), 1 << 16);
        let mut options = Vec::new();
        push_attribute(&mut options, TCA_BPF_ID, &5_u32.to_ne_bytes());
        push_attribute(&mut body, TCA_KIND, b"u32\0");
        push_attribute(&mut body, TCA_OPTIONS, &options);
        let request = Request::new(RTM_NEWTFILTER, 0, &body);
        let filter = Filter::parse(&request.message().unwrap()).unwrap();
        assert_eq!((filter.program, filter.label, filter.priority), (None, None, 1));
    }

    #[test]
    fn the_head_of_a_list_is_no_filter() {
        let body = header(7, 0, Direction::In.parent(), 1 << 16);
        let request = Request::new(RTM_NEWTFILTER, 0, &body);
        assert_eq!(Filter::parse(&request.message().unwrap()), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let request = Request::new(RTM_NEWTFILTER, 0, &body);
            let _ = Filter::parse(&request.message().unwrap());
        }
    }
}
