use flannel_probe::{Datagram, HEADER, Kind};

/// A datagram of a prober, over IPv4 and IPv6: each has one spelling, and nobody is answered with more than was sent.
pub fn probe(bytes: &[u8]) {
    for headers in [28, 48] {
        let Some(read) = Datagram::parse(bytes, bytes.len(), headers) else { continue };
        assert_eq!(bytes[..HEADER], read.header());
        match read.kind {
            Kind::Reply => assert_eq!(bytes.len(), HEADER),
            Kind::Request => assert_eq!(bytes.len() + headers, usize::from(read.size)),
        }
        // A socket reads the header alone, and hears how long the rest is.
        assert_eq!(Datagram::parse(&bytes[..HEADER], bytes.len(), headers), Some(read));
    }
}
