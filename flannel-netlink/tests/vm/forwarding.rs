use flannel_netlink::{
    Connection, LinkSpec, LinkSpecKind, Monitor, Namespace, Notice, Subject, ensure_link,
    state::{ForwardingEntry, Object, Vxlan},
};

/// Kernels before 6.14 tell of it again, without its remote.
#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn an_entry_is_told_once_and_as_the_device_has_it() {
    let namespace = Namespace::create().unwrap();
    let mut connection = Connection::open(&namespace).unwrap();
    let vxlan = Vxlan { port: Some(8472), ..Vxlan::new(1) };
    let spec = LinkSpec::new("flannel.1", LinkSpecKind::Vxlan(vxlan));
    let (link, _) = ensure_link(&mut connection, &spec).await.unwrap();
    let mac = "0e:2a:11:22:33:44".parse().unwrap();
    let entry = ForwardingEntry::new(link.index, mac, "192.0.2.2".parse().unwrap());
    let mut monitor = Monitor::open(&namespace).unwrap();
    let work = async {
        connection.apply_one(entry.replace()).await.unwrap();
        connection.apply_one(entry.delete()).await.unwrap();
    };
    let ((), notices) = monitor.during(work).await.unwrap();
    let mut told = notices.iter().filter_map(|notice| match notice {
        Notice::Added { subject: Subject::Object(object), .. } => Some((true, *object)),
        Notice::Removed { subject: Subject::Object(object), .. } => Some((false, *object)),
        _ => None,
    });
    let entry = Object::from(entry);
    assert_eq!((told.next(), told.next()), (Some((true, entry)), Some((false, entry))));
    assert_eq!(told.next(), None);
}
