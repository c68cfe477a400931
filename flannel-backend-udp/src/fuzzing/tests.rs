use flannel_tunnel::testing::{joined, packets};

use super::*;
use crate::verdict::DropReason;

/// Whether anything passes at all is a matter of the bytes: this says what became of them.
fn outcome(bytes: &[u8]) -> Result<u8, DropReason> {
    let (packet, offload) = input::device(bytes).ok_or(DropReason::Truncated)?;
    verdict::outbound(&packet, &table()).map(|_| offload.kind)
}

/// The packet as a device hands it over, described as large.
fn large(packet: &[u8], size: u16) -> Vec<u8> {
    let size = size.to_ne_bytes();
    let header = [0, 0, 0, 0, size[0], size[1], 0, 0, 0, 0];
    [&[0b1101], header.as_slice(), packet].concat()
}

#[test]
fn packets_of_a_kernel_pass_both_ways() {
    let packets = packets::captured();
    for packet in &packets {
        let bytes = [&[0; 11], packet.as_slice()].concat();
        assert_eq!(outcome(&bytes), Ok(GSO_NONE));
        from_device(&bytes);
    }
    let datagram = |packet: &Vec<u8>| {
        let len = (packet.len() as u16).to_be_bytes();
        [&[0, len[0], len[1]], packet.as_slice()].concat()
    };
    let bytes: Vec<u8> = packets.iter().flat_map(datagram).collect();
    assert_eq!(input::datagrams(&bytes).len(), packets.len());
    from_peers(&bytes);
}

#[test]
fn large_packets_are_described_and_cut() {
    let data = vec![7; 5000];
    let header = &packets::captured()[7][..52];
    let tcp = [header, &data].concat();
    assert_eq!(outcome(&large(&tcp, 1400)), Ok(flannel_tunnel::segment::GSO_TCPV4));
    from_device(&large(&tcp, 1400));
    from_device(&large(&tcp, 1));
}

#[test]
fn a_packet_that_goes_on_is_joined() {
    let first = &packets::captured()[7];
    let len = (first.len() as u16).to_be_bytes();
    let mut bytes = [&[3, len[0], len[1]], first.as_slice()].concat();
    for _ in 0..3 {
        bytes.extend([7, 0, 100]);
        bytes.extend([9; 100]);
    }
    let packets: Vec<_> = input::datagrams(&bytes).into_iter().map(|it| it.packet).collect();
    assert_eq!(joined(&packets).len(), 2, "a shorter one ends what is joined");
    from_peers(&bytes);
}
