use super::*;
use crate::{
    Request,
    state::RTM_NEWNEIGH,
    wire::{MESSAGE_HEADER, push_attribute},
};

/// Linux before 6.14 tells of a written entry as the device has it, and again as it was asked for, without its remote.
#[test]
fn what_was_asked_for_is_not_taken_for_what_a_device_has() {
    let mac = "0e:2a:11:22:33:44".parse().unwrap();
    let entry = ForwardingEntry::new(3, mac, "192.0.2.2".parse().unwrap());
    let echo = ForwardingEntry { remote: None, ..entry }.replace();
    let mut body = entry.replace().bytes()[MESSAGE_HEADER..].to_vec();
    push_attribute(&mut body, NDA_CACHEINFO, &[0; 16]);
    let told = Request::new(RTM_NEWNEIGH, 0, &body);

    let subject = |request: &Request| match Notice::of(&request.message().unwrap()) {
        Notice::Added { subject, .. } => subject,
        notice => panic!("{notice:?}"),
    };
    assert_eq!(subject(&told), Subject::Object(entry.into()));
    assert_eq!(subject(&echo), Subject::Other(RTM_NEWNEIGH));
}

// linux/neighbour.h
const NDA_CACHEINFO: u16 = 3;
