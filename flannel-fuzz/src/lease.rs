use flannel_core::LeaseAttrs;
use flannel_store::{Lifetime, Record};

/// The value of a lease as it is in etcd: what is read prints as something that reads the same and prints the same.
pub fn lease(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let parsed = text.parse::<LeaseAttrs>();
    if let Ok(attrs) = &parsed {
        let printed = attrs.to_string();
        let again = printed.parse::<LeaseAttrs>();
        assert_eq!(again.as_ref(), Ok(attrs), "{printed}");
        assert_eq!(again.map(|again| again.to_string()), Ok(printed));
    }
    let record = Record {
        key: "10.3.7.0-24".into(),
        value: Ok(text.into_owned()),
        owner: "192.0.2.1".parse().ok(),
        revision: 1,
        created: 1,
        lifetime: Lifetime::Bounded,
        token: 0,
    };
    match record.lease() {
        Ok(lease) => assert_eq!(Some(lease.attrs), parsed.ok()),
        Err(reason) => assert!(reason.to_string().len() < 1000, "{reason}"),
    }
}
