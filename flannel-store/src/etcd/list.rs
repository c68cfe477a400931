//! All leases at one revision, page by page.

use std::{collections::VecDeque, time::Duration};

use flannel_core::NodeId;
use tokio::time::Instant;
use tonic::Code;

use crate::{
    etcd::{
        client::{CallError, Client},
        endpoint_error::{EndpointError, EndpointErrors},
        keys::{Keys, Place},
        lease_txn,
        proto::{KeyValue, RangeRequest, RangeResponse},
    },
    registry::{Record, RegistryError, Snapshot},
};

/// Reads all records. However many there are, one page at a time is held in another form than that of the result.
pub(super) async fn list(client: &Client, keys: &Keys) -> Result<Snapshot, RegistryError> {
    let mut listing = Listing::new(keys);
    loop {
        let request = listing.next_page();
        match client.call(|rpc| rpc.range(request.clone())).await {
            Ok(answer) => {
                if let Some(snapshot) = listing.take(answer.value) {
                    return Ok(snapshot);
                }
            }
            Err(CallError::Answer(endpoint, status)) if status.code() == Code::OutOfRange => {
                // etcd has forgotten the revision or not reached it, or else the page is longer than any answer may be.
                let retried = match status.message().starts_with("etcdserver:") {
                    true => listing.start_again(),
                    false => listing.shrink(),
                };
                if !retried {
                    let reason = status.message().to_owned();
                    let error = EndpointError::Refused { endpoint, reason };
                    return Err(EndpointErrors::from(error).of(OPERATION));
                }
            }
            Err(failure) => return Err(failure.of(OPERATION)),
        }
    }
}

/// A record that shared an address with `record` when that was written, as far as its key says.
pub(super) async fn overlapping(
    client: &Client,
    keys: &Keys,
    record: &Record,
) -> Result<Option<Record>, RegistryError> {
    let mut request = RangeRequest {
        key: keys.lease(""),
        range_end: keys.end(),
        revision: record.revision.cast_signed(),
        keys_only: true,
        limit: KEYS_PAGE,
    };
    loop {
        let answer = client.call(|rpc| rpc.range(request.clone())).await;
        let operation = || format!("look for leases that overlap {}", record.key);
        let page = answer.map_err(|failure| failure.of(operation()))?.value;
        let Some(last) = page.kvs.last().filter(|_| page.more).map(|kv| kv.key.clone()) else {
            return Ok(overlapping_of(page.kvs, keys, record));
        };
        if let Some(other) = overlapping_of(page.kvs, keys, record) {
            return Ok(Some(other));
        }
        request.key = [&*last, &[0]].concat();
    }
}

fn overlapping_of(kvs: Vec<KeyValue>, keys: &Keys, record: &Record) -> Option<Record> {
    let mut others = kvs.into_iter().filter_map(|kv| {
        let name = kv.key.clone();
        let Place::Lease(key) = keys.place(&name) else { return None };
        Some(Record { value: Err("it was not read".into()), ..lease_txn::record(key, kv) })
    });
    others.find(|other| other.overlaps(&record.key))
}

/// Keys per page: 400 kB.
const KEYS_PAGE: i64 = 4096;

/// What has been read, and what is to be read next.
#[derive(Debug)]
struct Listing<'a> {
    keys: &'a Keys,
    next: Vec<u8>,
    /// 0 until the first page says which one it is.
    revision: i64,
    limit: i64,
    /// When the page was asked for that is on its way.
    asked: Instant,
    keys_only: bool,
    starts: u32,
    /// The owners with their revisions, in the order of keys, as far as the leases have not passed them.
    owners: VecDeque<(Vec<u8>, u64, NodeId)>,
    records: Vec<Record>,
}

impl<'a> Listing<'a> {
    fn new(keys: &'a Keys) -> Self {
        Self {
            keys,
            next: keys.begin(),
            revision: 0,
            limit: FIRST_PAGE,
            asked: Instant::now(),
            keys_only: false,
            starts: 1,
            owners: VecDeque::new(),
            records: Vec::new(),
        }
    }

    fn next_page(&self) -> RangeRequest {
        RangeRequest {
            key: self.next.clone(),
            range_end: self.keys.end(),
            limit: self.limit,
            revision: self.revision,
            keys_only: self.keys_only,
        }
    }

    /// Takes a page in, and returns everything if it was the last one.
    fn take(&mut self, page: RangeResponse) -> Option<Snapshot> {
        if self.revision == 0 {
            self.revision = page.header.map_or(0, |header| header.revision);
        }
        let more = page.more && !page.kvs.is_empty();
        if let Some(last) = page.kvs.last() {
            self.next.clone_from(&last.key);
            self.next.push(0);
        }
        for kv in page.kvs {
            self.entry(kv);
        }
        // Over a slow line a page has to arrive in time, whatever is left.
        if self.asked.elapsed() < QUICK {
            self.limit = (self.limit * 2).min(PAGE);
        }
        self.asked = Instant::now();
        self.keys_only = false;
        (!more).then(|| Snapshot {
            records: std::mem::take(&mut self.records),
            revision: self.revision.unsigned_abs(),
        })
    }

    fn entry(&mut self, kv: KeyValue) {
        let key = kv.key.clone();
        match self.keys.place(&key) {
            Place::Lease(key) => {
                let mut record = lease_txn::record(key, kv);
                if self.keys_only {
                    record.value =
                        Err("it is longer than anything that etcd sends by default".into());
                }
                while self.owners.front().is_some_and(|(owned, ..)| &**owned < key) {
                    self.owners.pop_front();
                }
                let is_next = self.owners.front().is_some_and(|(owned, ..)| owned == key);
                let owner = if is_next { self.owners.pop_front() } else { None };
                // An owner that was not written together with the lease is that of an earlier one.
                let owner = owner.filter(|(_, revision, _)| *revision == record.revision);
                record.owner = owner.map(|(.., node)| node);
                self.records.push(record);
            }
            Place::Owner(key) => {
                let owner = lease_txn::owner(&kv);
                let revision = kv.mod_revision.unsigned_abs();
                self.owners.extend(owner.map(|node| (key.to_vec(), revision, node)));
            }
            Place::Other => {}
        }
    }

    /// Asks for less at a time; whether that is possible.
    fn shrink(&mut self) -> bool {
        if self.limit > 1 {
            self.limit /= 2;
            return true;
        }
        !std::mem::replace(&mut self.keys_only, true)
    }

    /// Begins anew at the newest revision, unless that was done too often.
    fn start_again(&mut self) -> bool {
        let starts = self.starts + 1;
        *self = Self { starts, ..Self::new(self.keys) };
        starts <= MAX_STARTS
    }
}

const OPERATION: &str = "list the leases";

/// Entries per page: some 3 MB of usual leases. etcd walks the keys of all further pages for each, so that small ones make a
/// long list slow: 120,000 keys take 1.3 s with pages of 1000, 0.2 s with these, and 0.15 s in one piece.
const PAGE: i64 = 16 * 1024;

/// Entries of the first page, which shows how fast the line is: a second at 2 Mbit/s.
const FIRST_PAGE: i64 = 1024;

/// How soon a page arrives where a page twice as long will arrive in time too.
const QUICK: Duration = Duration::from_secs(1);

/// How often a list is begun. It fails if etcd is compacted while it is read, which it is every five minutes or less often.
const MAX_STARTS: u32 = 3;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::etcd::proto::ResponseHeader;

    fn kv(key: Vec<u8>, value: &str, mod_revision: i64, lease: i64) -> KeyValue {
        KeyValue { key, create_revision: 1, mod_revision, value: value.into(), lease }
    }

    /// Answers as etcd does for what is in `stored`, with pages of at most `limit`.
    fn answer(
        stored: &BTreeMap<Vec<u8>, KeyValue>,
        request: &RangeRequest,
        limit: usize,
    ) -> RangeResponse {
        let range = stored.range(request.key.clone()..request.range_end.clone());
        let limit = limit.min(usize::try_from(request.limit).unwrap());
        let kvs: Vec<_> = range.clone().take(limit).map(|(_, kv)| kv.clone()).collect();
        let more = range.count() > kvs.len();
        RangeResponse { header: Some(ResponseHeader { revision: 99 }), kvs, more }
    }

    proptest! {
        #[test]
        fn owners_are_found_whatever_else_is_there(
            leases in proptest::collection::btree_map("[ab&-]{0,3}", 1i64..4, 0..12),
            owners in proptest::collection::btree_map("[ab&-]{0,3}", (1i64..4, "(n1|n 2|)"), 0..12),
            other in proptest::collection::vec("/x/s[ub-]{0,4}", 0..4),
            limit in 1usize..5,
        ) {
            let keys = Keys::new("/x");
            let mut stored = BTreeMap::new();
            let mut store = |key: Vec<u8>, value: &str, revision| {
                stored.insert(key.clone(), kv(key, value, revision, 7));
            };
            other.iter().for_each(|key| store(key.clone().into(), "n1", 1));
            leases.iter().for_each(|(key, revision)| store(keys.lease(key), key, *revision));
            owners.iter().for_each(|(key, (revision, owner))| store(keys.owner(key), owner, *revision));
            let mut listing = Listing::new(&keys);
            let snapshot = loop {
                let page = answer(&stored, &listing.next_page(), limit);
                if let Some(snapshot) = listing.take(page) {
                    break snapshot;
                }
                prop_assert_eq!(listing.next_page().revision, 99, "all pages are of one revision");
            };
            prop_assert_eq!(snapshot.revision, 99);
            let read = snapshot.records.iter().map(|record| {
                let value = record.value.clone().unwrap();
                (value, (record.revision, record.owner.as_ref().map(|owner| owner.to_string())))
            });
            let expected = leases.iter().map(|(key, revision)| {
                let owner = owners.get(key).filter(|(written, _)| written == revision);
                let owner = owner.and_then(|(_, owner)| (owner == "n1").then(|| owner.clone()));
                (key.clone(), (revision.unsigned_abs(), owner))
            });
            prop_assert_eq!(read.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        }

        #[test]
        fn no_page_panics(
            key in proptest::collection::vec(any::<u8>(), 0..20),
            prefix in "(/x/subnets/|/x/subnet-owners/|)",
            value in proptest::collection::vec(any::<u8>(), 0..20),
            numbers in any::<(i64, i64, bool)>(),
        ) {
            let keys = Keys::new("/x");
            let (mod_revision, lease, more) = numbers;
            let key = [prefix.as_bytes(), &key].concat();
            let kv = KeyValue { key, create_revision: 1, mod_revision, value, lease };
            let page = RangeResponse { header: None, kvs: vec![kv.clone(), kv], more };
            Listing::new(&keys).take(page);
        }
    }

    #[test]
    fn a_page_that_is_too_long_is_read_in_parts() {
        let keys = Keys::new("/x");
        let mut listing = Listing::new(&keys);
        while listing.next_page().limit > 1 {
            assert!(listing.shrink());
        }
        assert!(!listing.next_page().keys_only);
        assert!(listing.shrink());
        assert!(listing.next_page().keys_only);
        let huge = kv(keys.lease("10.3.4.0-24"), "", 5, 7);
        let page = RangeResponse { header: None, kvs: vec![huge], more: true };
        assert_eq!(listing.take(page), None);
        assert!(!listing.next_page().keys_only);
        assert_eq!(listing.next_page().limit, 2);
        let usual = kv(keys.lease("10.3.5.0-24"), "{}", 6, 7);
        let page = RangeResponse { header: None, kvs: vec![usual], more: false };
        let records = listing.take(page).unwrap().records;
        assert!(records[0].value.is_err());
        assert_eq!(records[1].value.as_deref(), Ok("{}"));
        listing.limit = 1;
        listing.keys_only = true;
        assert!(!listing.shrink(), "there is nothing less to ask for");
    }

    #[test]
    fn a_list_is_not_begun_for_ever() {
        let keys = Keys::new("/x");
        let mut listing = Listing::new(&keys);
        listing.revision = 7;
        assert!(listing.start_again());
        assert_eq!(listing.next_page().revision, 0);
        assert!(listing.start_again());
        assert!(!listing.start_again());
    }
}
