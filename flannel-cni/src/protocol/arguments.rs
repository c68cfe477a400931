use std::{net::IpAddr, str::FromStr};

use super::{Code, Error};

/// What `CNI_ARGS` says: `K=V;K2=V2`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Arguments {
    /// `IP`: the address that is asked for. A prefix behind it is left out.
    pub ip: Option<IpAddr>,
    /// `MAC`: the Ethernet address that is asked for.
    pub mac: Option<String>,
    /// `K8S_POD_NAMESPACE`, which Kubernetes sets.
    pub pod_namespace: Option<String>,
    /// `K8S_POD_NAME`, which Kubernetes sets.
    pub pod_name: Option<String>,
}

impl FromStr for Arguments {
    type Err = Error;

    /// Reads the variable. Unknown keys are an error unless `IgnoreUnknown` is there, as in the plugins of containernetworking.
    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |what: String| {
            Error::new(Code::InvalidEnvironment, format!("CNI_ARGS: {what}"))
                .with_details("it has the form KEY=VALUE;KEY=VALUE")
        };
        let (mut arguments, mut ignore_unknown, mut unknown) = (Self::default(), false, None);
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let Some((key, value)) = pair.split_once('=').filter(|(_, value)| !value.contains('='))
            else {
                return Err(invalid(format!("invalid pair {pair:?}")));
            };
            match key {
                "IP" => {
                    let address = value.split_once('/').map_or(value, |(address, _)| address);
                    let address = address.parse::<IpAddr>();
                    let address =
                        address.map_err(|error| invalid(format!("IP is {value:?}: {error}")))?;
                    arguments.ip = Some(address.to_canonical());
                }
                "IgnoreUnknown" => {
                    ignore_unknown = match &*value.to_ascii_lowercase() {
                        "1" | "true" => true,
                        "0" | "false" => false,
                        _ => return Err(invalid(format!("IgnoreUnknown is {value:?}"))),
                    }
                }
                "K8S_POD_NAME" => arguments.pod_name = Some(value.to_owned()),
                "K8S_POD_NAMESPACE" => arguments.pod_namespace = Some(value.to_owned()),
                "MAC" => arguments.mac = Some(value.to_owned()).filter(|mac| !mac.is_empty()),
                _ => unknown = unknown.or(Some(key)),
            }
            if key.starts_with("K8S_POD_") {
                unknown = unknown.or(Some(key));
            }
        }
        match unknown {
            Some(key) if !ignore_unknown => {
                Err(invalid(format!("unknown argument {key:?}; IgnoreUnknown=1 accepts it")))
            }
            _ => Ok(arguments),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_kubelet_sends_is_read() {
        let text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns-1;\
                    K8S_POD_INFRA_CONTAINER_ID=abc;IP=10.1.2.3/24;MAC=c2:11:22:33:44:55";
        let arguments: Arguments = text.parse().unwrap();
        assert_eq!(arguments.ip, Some("10.1.2.3".parse().unwrap()));
        assert_eq!(arguments.mac.as_deref(), Some("c2:11:22:33:44:55"));
        assert_eq!(arguments.pod_namespace.as_deref(), Some("kube-system"));
        assert_eq!(arguments.pod_name.as_deref(), Some("dns-1"));
        assert_eq!("".parse(), Ok(Arguments::default()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("A", "invalid pair \"A\""),
            ("A=1=2", "invalid pair \"A=1=2\""),
            ("A=1", "unknown argument \"A\""),
            ("K8S_POD_NAME=x", "unknown argument \"K8S_POD_NAME\""),
            ("A=1;IgnoreUnknown=no", "IgnoreUnknown is \"no\""),
            ("IP=10.0.0", "IP is \"10.0.0\""),
        ] {
            let error = text.parse::<Arguments>().unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment);
            assert!(error.message.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[A-Za-z0-9=;/.:_ ]{0,60}") {
            let _ = text.parse::<Arguments>();
        }
    }
}
