use std::{fs, io, path::Path};

use crate::protocol::Dns;

/// What a file such as `/etc/resolv.conf` says.
pub(super) fn read(path: &Path) -> io::Result<Dns> {
    let text = fs::read(path)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let keyword = words.next();
        let mut words = words.map(str::to_owned).peekable();
        if words.peek().is_none() {
            continue;
        }
        match keyword {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_is_read() {
        let dns = parse(
            "# x\nnameserver 1.1.1.1\n nameserver ::1 x\nsearch a b\nsearch c\ndomain d\noptions ndots:5\nnameserver\n; y",
        );
        assert_eq!(dns.nameservers, ["1.1.1.1", "::1"]);
        assert_eq!((dns.search.concat(), &*dns.domain), ("abc".to_owned(), "d"));
        assert_eq!(dns.options, ["ndots:5"]);
    }
}
