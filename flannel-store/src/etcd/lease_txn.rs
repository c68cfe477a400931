//! A lease in etcd: two keys that are written together.

use flannel_core::{MAX_LEASE_BYTES, NodeId};

use crate::{
    etcd::{
        keys::Keys,
        proto::{
            Compare, KeyValue, ResponseOp, TxnRequest, TxnResponse, changed_at, delete,
            not_changed_at, put, read,
        },
    },
    registry::{Lifetime, NewRecord, Record},
};

/// The record of the lease in `kv`, at the subnet key `key`, without its owner.
pub(super) fn record(key: &[u8], kv: KeyValue) -> Record {
    let value = match kv.value.len() {
        0..=MAX_LEASE_BYTES => Ok(text(kv.value)),
        len => Err(format!("it has {len} bytes, expected at most {MAX_LEASE_BYTES}")),
    };
    Record {
        key: text(key.to_vec()),
        value,
        owner: None,
        revision: kv.mod_revision.unsigned_abs(),
        created: kv.create_revision.unsigned_abs(),
        lifetime: lifetime(kv.lease),
        token: kv.lease.cast_unsigned(),
    }
}

/// The owner in `kv`, if it is one.
pub(super) fn owner(kv: &KeyValue) -> Option<NodeId> {
    NodeId::new(std::str::from_utf8(&kv.value).ok()?).ok()
}

/// Writes a lease and its owner at `key`, both of the etcd lease `lease`, if what is there was last written at `was`, or if
/// nothing is and `was` is `None`.
pub(super) fn write(
    keys: &Keys,
    key: &str,
    was: Option<&Record>,
    write: &NewRecord,
    lease: i64,
) -> TxnRequest {
    // The owner comes first, so that watchers know it when they see the lease.
    let owner = match &write.owner {
        Some(owner) => put(keys.owner(key), owner.as_str(), lease),
        None => delete(keys.owner(key)),
    };
    let owner = Some(owner).filter(|_| !keys.is_ownerless());
    let lease = put(keys.lease(key), &*write.value, lease);
    TxnRequest {
        compare: compare(keys, key, was),
        success: owner.into_iter().chain([lease]).collect(),
        failure: reads(keys, key),
    }
}

/// Removes a lease and its owner if they are still `was`.
pub(super) fn remove(keys: &Keys, was: &Record) -> TxnRequest {
    TxnRequest {
        compare: compare(keys, &was.key, Some(was)),
        success: own_keys(keys, &was.key).into_iter().map(delete).collect(),
        failure: reads(keys, &was.key),
    }
}

/// Reads a lease and its owner; the answer says whether they are still `was`.
pub(super) fn check(keys: &Keys, was: &Record) -> TxnRequest {
    TxnRequest {
        compare: compare(keys, &was.key, Some(was)),
        success: Vec::new(),
        failure: reads(keys, &was.key),
    }
}

/// What the reads of a transaction found at `key`.
pub(super) fn found(key: &str, response: TxnResponse) -> Option<Record> {
    let kv = |op: ResponseOp| op.range.and_then(|range| range.kvs.into_iter().next());
    // The owner, if it is read, comes before the lease.
    let mut kvs = response.responses.into_iter().map(kv).rev();
    let (lease_kv, owner_kv) = (kvs.next().flatten()?, kvs.next().flatten());
    let mut record = record(key.as_bytes(), lease_kv);
    record.owner = owner_kv.filter(|kv| belongs(kv, &record)).as_ref().and_then(owner);
    Some(record)
}

/// The record that a transaction has written at `revision`.
pub(super) fn written(
    key: &str,
    was: Option<&Record>,
    write: &NewRecord,
    lease: i64,
    revision: i64,
) -> Record {
    let revision = revision.unsigned_abs();
    Record {
        key: key.into(),
        value: Ok(write.value.clone()),
        owner: write.owner.clone(),
        revision,
        created: was.map_or(revision, |was| was.created),
        lifetime: lifetime(lease),
        token: lease.cast_unsigned(),
    }
}

/// Whether an owner's key was written together with the lease. If it was not, somebody who does not know of owners has
/// written the lease since, as flannel does.
fn belongs(owner: &KeyValue, lease: &Record) -> bool {
    owner.mod_revision.unsigned_abs() == lease.revision
}

fn lifetime(lease: i64) -> Lifetime {
    match lease {
        0 => Lifetime::Unbounded,
        _ => Lifetime::Bounded,
    }
}

fn compare(keys: &Keys, key: &str, was: Option<&Record>) -> Vec<Compare> {
    let Some(was) = was else {
        return vec![changed_at(keys.lease(key), 0)];
    };
    let (lease, owner) = (keys.lease(key), keys.owner(key));
    let revision = was.revision.cast_signed();
    let same_owner = match was.owner {
        Some(_) => changed_at(owner, revision),
        None => not_changed_at(owner, revision),
    };
    let same_owner = Some(same_owner).filter(|_| !keys.is_ownerless());
    [changed_at(lease, revision)].into_iter().chain(same_owner).collect()
}

fn reads(keys: &Keys, key: &str) -> Vec<crate::etcd::proto::RequestOp> {
    own_keys(keys, key).into_iter().map(read).collect()
}

/// The keys of one lease.
fn own_keys(keys: &Keys, key: &str) -> Vec<Vec<u8>> {
    let owner = Some(keys.owner(key)).filter(|_| !keys.is_ownerless());
    owner.into_iter().chain([keys.lease(key)]).collect()
}

/// Text as Go reads it.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into())
}
