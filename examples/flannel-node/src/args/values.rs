//! Values of flags: how they are written, and what would be valid.

use std::{
    env, fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
};

use ipnetwork::IpNetwork;

/// The file of WireGuard's private key, for which flannel has a variable and no flag.
pub(super) fn wireguard_key_file() -> Option<PathBuf> {
    env::var_os("WIREGUARD_KEY_FILE").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// A switch, in the spellings of Go's `strconv.ParseBool`.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// An IPv4 address.
pub(super) fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    or_expected(text, "an IPv4 address such as 192.0.2.1")
}

/// An IPv6 address.
pub(super) fn ipv6(text: &str) -> Result<Ipv6Addr, String> {
    or_expected(text, "an IPv6 address such as 2001:db8::1")
}

/// An address of either family.
pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    or_expected(text, "an address such as 192.0.2.1 or 2001:db8::1")
}

/// An address block of either family.
pub(super) fn block(text: &str) -> Result<IpNetwork, String> {
    let block = text.contains('/').then(|| text.parse().ok()).flatten();
    block.ok_or_else(|| "expected a block such as 10.244.0.0/16 or fd00:10:244::/48".into())
}

/// A number in a range.
pub(super) fn number<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: Clone + fmt::Display + FromStr + PartialOrd + Send + Sync + 'static,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("expected a number from {} to {}", range.start(), range.end()))
    }
}

/// A number in a range, or a smaller one, which makes no sense but which flanneld takes.
pub(super) fn number_or_less(
    range: RangeInclusive<i32>,
) -> impl Fn(&str) -> Result<i32, String> + Clone + Send + Sync + 'static {
    move |text| number(i32::MIN..=*range.end())(text).or_else(|_| number(range.clone())(text))
}

fn or_expected<T: FromStr>(text: &str, expected: impl fmt::Display) -> Result<T, String> {
    text.parse().map_err(|_| format!("expected {expected}"))
}
