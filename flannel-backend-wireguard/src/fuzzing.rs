//! What has to hold for every text from outside, for fuzzers.

use flannel_core::{Family, Fields, RawJson};

use crate::{config::Settings, lease_data};

/// A peer's lease data, and the options of a network: what is read is valid, and lease data prints as what reads the same.
///
/// # Panics
///
/// If that does not hold.
pub fn texts(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(data) = RawJson::new(&text)
        && let Ok((key, port)) = lease_data::parse(Some(&data))
    {
        let printed = lease_data::print(key, port.unwrap_or(1));
        assert_eq!(lease_data::parse(Some(&printed)), Ok((key, Some(port.unwrap_or(1)))));
    }
    let Ok(options) = Fields::parse(&text) else { return };
    for families in [&[Family::Ipv4][..], &[Family::Ipv6], &[Family::Ipv4, Family::Ipv6]] {
        let Ok(settings) = Settings::read(&options, families.to_vec()) else { continue };
        let tunnels = settings.tunnels();
        let ports: Vec<_> = tunnels.iter().map(|tunnel| tunnel.port).collect();
        assert!(ports.iter().all(|port| *port > 0) && (ports.len() < 2 || ports[0] != ports[1]));
        assert!(tunnels.iter().flat_map(|tunnel| &tunnel.families).eq(families));
        assert_eq!(settings.adopt(settings.clone()), Ok(settings.clone()));
    }
}

/// Messages to a peer that has a session: each is a byte that says what it is, two bytes of length, and as many bytes.
///
/// A message that the other end sent is opened once and carries what was sent. No other one is opened, and none ends the session.
///
/// # Panics
///
/// If that does not hold.
pub fn messages(bytes: &[u8]) {
    crate::engine::fuzzing::messages(bytes);
}
