use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<NetworkConfig, ConfigError> {
    text.parse()
}

fn ipv4(text: &str) -> SubnetRange<Ipv4Network> {
    *parse(text).unwrap().ipv4().unwrap()
}

fn message(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn ipv4_defaults_are_flannels() {
    // pkg/subnet/config_test.go, TestConfigDefaults at cdf76059: lower-case key, first subnet left out.
    let range = ipv4(r#"{"network": "10.3.0.0/16"}"#);
    assert_eq!(range.subnet_min(), Ipv4Addr::new(10, 3, 1, 0));
    assert_eq!(range.subnet_max(), Ipv4Addr::new(10, 3, 255, 0));
    assert_eq!(range.subnet_len(), 24);
    let config = parse(r#"{"network": "10.3.0.0/16"}"#).unwrap();
    assert_eq!(config.backend().kind(), "udp");
    assert!(!config.backend().is_explicit());
    assert_eq!(config.enable_nftables(), None);
}

#[test]
fn ipv6_defaults_are_flannels() {
    // TestIPv6ConfigDefaults at cdf76059.
    let config =
        parse(r#"{"enableIPv4": false, "enableIPv6": true, "ipv6Network": "fc00::/48"}"#).unwrap();
    let range = config.ipv6().unwrap();
    assert_eq!(range.subnet_min().to_string(), "fc00:0:0:1::");
    assert_eq!(range.subnet_max().to_string(), "fc00:0:0:ffff::");
    assert_eq!(range.subnet_len(), 64);
    assert!(config.ipv4().is_none());
}

#[test]
fn explicit_bounds_are_taken() {
    let range = ipv4(
        r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0","SubnetLen":28}"#,
    );
    assert_eq!(range.subnet_min(), Ipv4Addr::new(10, 3, 5, 0));
    assert_eq!(range.subnet_max(), Ipv4Addr::new(10, 3, 8, 0));
    assert_eq!(range.count(), 3 * 16 + 1);
}

#[test]
fn the_subnet_length_follows_small_networks() {
    for (network, len) in [(16, 24), (22, 24), (23, 25), (28, 30)] {
        let text = format!(r#"{{"Network":"10.3.0.0/{network}"}}"#);
        assert_eq!(ipv4(&text).subnet_len(), len, "/{network}");
    }
    assert!(message(r#"{"Network":"10.3.0.0/29"}"#).contains("expected a block of /28 or larger"));
}

#[test]
fn networks_at_the_end_of_the_address_space_work() {
    let range = ipv4(r#"{"Network":"255.255.0.0/16"}"#);
    assert_eq!(range.subnet_max(), Ipv4Addr::new(255, 255, 255, 0));
    let config =
        parse(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ffff::/16"}"#).unwrap();
    assert_eq!(config.ipv6().unwrap().subnet_max().to_string(), "ffff:ffff:ffff:ffff::");
}

#[test]
fn host_bits_are_cleared_and_unset_values_are_derived() {
    let range = ipv4(
        r#"{"Network":"10.3.7.1/16","SubnetLen":0,"SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0"}"#,
    );
    assert_eq!(range.network().to_string(), "10.3.0.0/16");
    assert_eq!((range.subnet_len(), range.count()), (24, 255));
}

#[test]
fn an_error_names_key_value_and_what_is_valid() {
    let cases = [
        (
            r#"{}"#,
            "network config: Network is missing, expected an IPv4 block such as 10.244.0.0/16",
        ),
        (
            r#"{"Network":"fc00::/48"}"#,
            r#"network config: Network is "fc00::/48", expected an IPv4 block such as 10.244.0.0/16"#,
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#,
            "network config: SubnetLen is 31, expected 18 to 30, so that 10.3.0.0/16 holds four subnets",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":17}"#,
            "network config: SubnetLen is 17, expected 18 to 30, so that 10.3.0.0/16 holds four subnets",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}"#,
            "network config: SubnetMin is 10.4.0.0, expected an address in 10.3.0.0/16",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMax":"10.3.8.7"}"#,
            "network config: SubnetMax is 10.3.8.7, expected the first of a /24 subnet such as 10.3.8.0/24",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0"}"#,
            "network config: SubnetMin is 10.3.9.0, expected at most SubnetMax = 10.3.8.0",
        ),
        (
            r#"{"EnableIPv4":false}"#,
            "network config: EnableIPv4 and EnableIPv6 are both false, expected at least one true",
        ),
        (
            r#"{"Network":"10.3.0.0/16","Backend":"vxlan"}"#,
            r#"network config: Backend is "vxlan", expected an object with a Type"#,
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true}"#,
            "network config: IPv6Network is missing, expected an IPv6 block such as fd00:10:244::/48",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(message(text), expected, "{text}");
    }
}

#[test]
fn malformed_members_are_refused_even_where_the_family_is_off() {
    for member in [
        r#""SubnetLen":-1"#,
        r#""SubnetLen":24.5"#,
        r#""SubnetLen":"24""#,
        r#""SubnetMin":"""#,
        r#""SubnetMin":7"#,
        r#""IPv6SubnetMin":"1.2.3.4.5""#,
        r#""IPv6Network":"10.0.0.0/8""#,
        r#""EnableIPv6":1"#,
        r#""Network":"10.0.0.0""#,
    ] {
        let text = format!(r#"{{"Network":"10.3.0.0/16",{member}}}"#);
        assert!(parse(&text).is_err(), "{text}");
    }
}

#[test]
fn a_cluster_that_chooses_subnets_is_told_nothing_about_them() {
    for (network, members) in [
        ("10.244.0.0/24", r#","SubnetLen":24"#),
        ("10.244.0.0/16", r#","SubnetMin":"10.244.0.7","SubnetMax":"10.245.0.0""#),
        ("10.244.0.0/16", ""),
    ] {
        let text = format!(r#"{{"Network":"{network}"{members}}}"#);
        assert_eq!(parse(&text).is_err(), !members.is_empty());
        let config = NetworkConfig::of_cluster(&text).unwrap();
        assert_eq!(config.ipv4().unwrap().network().to_string(), network);
    }
    let dual = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetLen":1}"#;
    let ipv6 = *NetworkConfig::of_cluster(dual).unwrap().ipv6().unwrap();
    assert_eq!((ipv6.network().to_string(), ipv6.subnet_len()), ("fd00::/48".into(), 64));
    assert!(NetworkConfig::of_cluster(r#"{"Network":"10.244.0.0/16","SubnetLen":"x"}"#).is_err());
}

#[test]
fn the_backend_keeps_its_options_and_its_type_is_lower_case() {
    let config = parse(r#"{"Network":"10.3.0.0/16","backend":{"type":"VXLAN","vni":7}}"#).unwrap();
    assert_eq!(config.backend().kind(), "vxlan");
    assert_eq!(config.backend().options().integer("VNI", 0..=9), Ok(Some(7)));
    let config = parse(r#"{"Network":"10.3.0.0/16","Backend":null}"#).unwrap();
    assert_eq!((config.backend().kind(), config.backend().is_explicit()), ("", true));
}

#[test]
fn secrets_are_stored_and_not_shown() {
    let text = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"wireguard","psk":"aGlkZGVu","a\"b":[1],"PSK":"aGlkZGVu"}}"#;
    let config = parse(text).unwrap();
    assert!(serde_json::to_string(&config).unwrap().contains("aGlkZGVu"));
    let hidden = config.without_secrets();
    let shown = r#"{"Type":"wireguard","psk":"…","a\"b":[1],"PSK":"…"}"#;
    assert_eq!(config.backend().to_string(), shown);
    assert!(serde_json::to_string(&hidden).unwrap().contains(shown));
    assert_eq!(format!("{:?}", config.backend()), format!("BackendConfig({shown})"));
    assert_eq!(parse(&serde_json::to_string(&hidden).unwrap()).unwrap(), hidden);
    let open =
        parse(r#"{"Network":"10.3.0.0/16","Backend":{ "Type" : "x", "PSK":null }}"#).unwrap();
    assert!(open.backend().to_string().contains(r#""PSK":null"#));
}

#[test]
fn an_error_shows_no_secret_that_is_in_the_wrong_place() {
    let backend = r#"{"Type":"wireguard","PSK":"aGlkZGVu"}"#;
    let text = serde_json::to_string(backend).unwrap();
    for member in [
        format!(r#""Backend":[{backend}]"#),
        format!(r#""Backend":{text}"#),
        format!(r#""Backend":{{"Type":{backend}}}"#),
        format!(r#""SubnetLen":{backend}"#),
    ] {
        let shown = message(&format!(r#"{{"Network":"10.3.0.0/16",{member}}}"#));
        assert!(shown.contains(" is a") && !shown.contains("aGlkZGVu"), "{shown}");
    }
}

#[test]
fn the_firewall_is_left_open_unless_it_is_named() {
    let nftables = |value: &str| {
        let text = format!(r#"{{"Network":"10.3.0.0/16"{value}}}"#);
        let config = parse(&text).unwrap();
        let printed = serde_json::to_string(&config).unwrap();
        assert_eq!(parse(&printed).unwrap(), config, "{printed}");
        config.enable_nftables()
    };
    assert_eq!(nftables(""), None);
    assert_eq!(nftables(r#","EnableNFTables":null"#), None);
    assert_eq!(nftables(r#","EnableNFTables":false"#), Some(false));
    assert_eq!(nftables(r#","enableNfTables":true"#), Some(true));
}

#[test]
fn only_subnets_of_exactly_the_enabled_families_are_admitted() {
    let config = parse(r#"{"Network":"10.3.0.0/16"}"#).unwrap();
    let admits = |key: &str| config.admits(&key.parse().unwrap());
    assert!(admits("10.3.1.0-24"));
    assert!(!admits("10.3.0.0-24"));
    assert!(!admits("10.3.1.0-25"));
    let one = r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.7.0","SubnetMax":"10.3.7.0"}"#;
    let one: NetworkConfig = one.parse().unwrap();
    assert!(
        one.admits(&"10.3.7.0-24".parse().unwrap()) && !one.admits(&"10.3.8.0-24".parse().unwrap())
    );
    assert!(!admits("10.4.1.0-24"));
    assert!(!admits("10.3.1.0-24&fd00::-64"));
    assert!(!admits("fd00::-64"));
}

#[test]
fn keys_that_nobody_reads_are_listed() {
    let text = r#"{"network":"10.3.0.0/16","SubnetLenght":24,"Backend":{"Tpye":"vxlan"},"SUBNETMIN":"10.3.1.0","x":1}"#;
    assert_eq!(NetworkConfig::unknown_keys(text), ["SubnetLenght", "x"]);
    let config = parse(
        r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"EnableNFTables":true,"IPv6Network":"fd00::/48","Backend":{}}"#,
    );
    let all = serde_json::to_string(&config.unwrap()).unwrap();
    assert_eq!(NetworkConfig::unknown_keys(&all), [""; 0], "all that is printed is known");
    assert_eq!(NetworkConfig::unknown_keys("no object"), [""; 0]);
}

fn configs() -> impl Strategy<Value = String> {
    let len = prop_oneof![Just(None), (0u64..40).prop_map(Some)];
    let family = |name: &'static str, on: bool, bits: u8| {
        (any::<u128>(), 0..=bits, len.clone()).prop_map(move |(bits_, prefix, len)| {
            let (address, p) = if name.is_empty() {
                (Ipv4Addr::from(bits_ as u32).to_string(), "")
            } else {
                (Ipv6Addr::from(bits_).to_string(), "IPv6")
            };
            let len = len.map(|len| format!(r#","{p}SubnetLen":{len}"#)).unwrap_or_default();
            let v = if name.is_empty() { "4" } else { "6" };
            format!(r#""EnableIPv{v}":{on},"{p}Network":"{address}/{prefix}"{len}"#)
        })
    };
    (family("", true, 32), family("IPv6", true, 128), 0..3usize).prop_map(|(v4, v6, which)| {
        match which {
            0 => format!("{{{v4}}}"),
            1 => format!(r#"{{"EnableIPv4":false,{v6}}}"#),
            _ => format!(r#"{{{v4},{v6},"Backend":{{"Type":"vxlan","VNI":3}}}}"#),
        }
    })
}

proptest! {
    #[test]
    fn printing_and_parsing_again_changes_nothing(text in configs()) {
        if let Ok(config) = parse(&text) {
            let printed = serde_json::to_string(&config).unwrap();
            prop_assert_eq!(&parse(&printed).unwrap(), &config);
            prop_assert_eq!(serde_json::from_str::<NetworkConfig>(&printed).unwrap(), config);
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}", value in "[-0-9a-f:./\"nul]{0,20}", key in 0..6usize) {
        let _ = parse(&text);
        let key = ["Network", "SubnetLen", "SubnetMin", "IPv6Network", "Backend", "EnableIPv6"][key];
        let _ = parse(&format!(r#"{{"EnableIPv6":true,"{key}":{value}}}"#));
        let _ = parse(&format!(r#"{{"EnableIPv6":true,"{key}":"{value}"}}"#));
    }
}

#[test]
fn null_is_refused_where_flannel_refuses_it() {
    for key in ["Network", "IPv6Network", "SubnetMin", "SubnetMax"] {
        let error = parse(&format!(r#"{{"{key}":null}}"#)).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("null"), "{error}");
    }
    let nulls = r#"{"Network":"10.3.0.0/16","SubnetLen":null,"EnableIPv6":null,"IPv6SubnetMin":null,"IPv6SubnetMax":null,"IPv6SubnetLen":null}"#;
    assert_eq!(parse(nulls), parse(r#"{"Network":"10.3.0.0/16"}"#));
}

#[test]
fn pods_are_in_subnets_that_nodes_may_get() {
    let config = r#"{"Network":"10.0.0.0/8","SubnetMin":"10.244.0.0","SubnetMax":"10.244.255.0","EnableIPv6":true,
        "IPv6Network":"fd00:10:244::/48","Backend":{"Type":"host-gw"}}"#;
    let config: NetworkConfig = config.parse().unwrap();
    let is_pods = |ip: &str| config.pod_network(ip.parse().unwrap()).is_some();
    for ip in ["10.244.0.0", "10.244.255.255", "fd00:10:244:1::", "fd00:10:244:ffff:ffff::"] {
        assert!(is_pods(ip), "{ip}");
    }
    for ip in ["10.243.255.255", "10.245.0.0", "10.0.0.1", "fd00:10:245::", "::", "0.0.0.0"] {
        assert!(!is_pods(ip), "{ip}");
    }
}
