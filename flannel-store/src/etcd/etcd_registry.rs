//! etcd as a key-value engine.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tonic::Code;
use tracing::{debug, warn};

use crate::{
    etcd::{
        client::{Answer, Client},
        config::{EtcdConfig, EtcdConfigError},
        config_key_watch::ConfigKeyWatch,
        etcd_watch,
        keys::Keys,
        lease_txn, list,
        proto::{
            KeyValue, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, RangeRequest,
            TxnRequest, TxnResponse, changed_at, put,
        },
    },
    registry::{Change, ConfigText, NewRecord, Record, Registry, RegistryError, Snapshot},
};

/// The keys of one network in etcd; [`EtcdStore`](crate::EtcdStore) says which they are.
#[derive(Clone, Debug)]
pub struct EtcdRegistry {
    client: Arc<Client>,
    keys: Arc<Keys>,
}

impl EtcdRegistry {
    /// The registry that `config` describes. It reads the certificates and connects with the first call.
    ///
    /// # Errors
    ///
    /// [`EtcdConfigError`].
    pub fn new(config: &EtcdConfig) -> Result<Self, EtcdConfigError> {
        Ok(Self {
            client: Arc::new(Client::new(config)?),
            keys: Arc::new(Keys::new(&config.prefix)),
        })
    }

    /// The network's configuration as a key and its value, if there is one.
    async fn config_key(&self) -> Result<Option<KeyValue>, RegistryError> {
        let key = self.keys.config();
        let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
        let answer = self.client.call(|rpc| rpc.range(request.clone())).await;
        let answer = answer.map_err(|failure| failure.of(format!("read etcd key {key}")))?;
        Ok(answer.value.kvs.into_iter().next())
    }

    async fn txn(
        &self,
        operation: &str,
        request: TxnRequest,
    ) -> Result<Answer<TxnResponse>, RegistryError> {
        let answer = self.client.call(|rpc| rpc.txn(request.clone())).await;
        answer.map_err(|failure| failure.of(operation))
    }

    /// Writes at `key`, with the etcd lease `lease`.
    async fn put(
        &self,
        operation: &str,
        key: &str,
        was: Option<&Record>,
        write: &NewRecord,
        lease: i64,
    ) -> Result<Record, RegistryError> {
        let owner = write.owner.clone().filter(|_| !self.keys.is_ownerless());
        let write = &NewRecord { owner, ..write.clone() };
        let request = lease_txn::write(&self.keys, key, was, write, lease);
        let Answer { value: response, repeated } = self.txn(operation, request).await?;
        if response.succeeded {
            let revision = response.header.map_or(0, |header| header.revision);
            return Ok(lease_txn::written(key, was, write, lease, revision));
        }
        match lease_txn::found(key, response) {
            // An answer was lost, and what was asked for had been done.
            Some(record) if repeated && is_as_written(&record, write, lease) => Ok(record),
            current => Err(conflict(current)),
        }
    }

    /// Writes at `key` with a new etcd lease, or without any if it is to stay.
    async fn put_anew(
        &self,
        operation: &str,
        key: &str,
        was: Option<&Record>,
        write: &NewRecord,
    ) -> Result<Record, RegistryError> {
        let lease = match write.ttl {
            Some(ttl) => self.grant(operation, ttl).await?,
            None => 0,
        };
        let result = self.put(operation, key, was, write, lease).await;
        match &result {
            // What the record had before holds nothing any more.
            Ok(_) => self.revoke_ours(was).await,
            // Nothing was written with it. After any other error something may have been.
            Err(RegistryError::Conflict { .. } | RegistryError::Denied { .. }) => {
                self.revoke(lease).await;
            }
            Err(_) => {}
        }
        result
    }

    /// A new etcd lease.
    async fn grant(&self, operation: &str, ttl: Duration) -> Result<i64, RegistryError> {
        let mut request = LeaseGrantRequest { ttl: seconds(ttl), id: new_lease_id() };
        let mut granted = self.client.call(|rpc| rpc.grant(request.clone())).await;
        // The number is taken, or the answer to an attempt before was lost. Another one serves in both cases.
        if granted.as_ref().is_err_and(|failure| failure.is(Code::FailedPrecondition)) {
            request.id = new_lease_id();
            granted = self.client.call(|rpc| rpc.grant(request.clone())).await;
        }
        granted.map(|_| request.id).map_err(|failure| failure.of(operation))
    }

    /// Makes an etcd lease last, and says for how many seconds; 0 if there is none.
    async fn keep_alive(&self, operation: &str, lease: u64) -> Result<i64, RegistryError> {
        let request = LeaseKeepAliveRequest { id: lease.cast_signed() };
        match self.client.call(|rpc| rpc.keep_alive(request.clone())).await {
            Ok(answer) => Ok(answer.value.ttl),
            Err(failure) if failure.is(Code::NotFound) => Ok(0),
            Err(failure) => Err(failure.of(operation)),
        }
    }

    /// Revokes the etcd lease that a record of ours had.
    async fn revoke_ours(&self, was: Option<&Record>) {
        // Another's lease may be attached to more than this record.
        if let Some(was) = was.filter(|was| was.owner.is_some()) {
            self.revoke(was.token.cast_signed()).await;
        }
    }

    /// Revokes an etcd lease that holds nothing. If that fails it ends by itself.
    async fn revoke(&self, lease: i64) {
        if lease == 0 {
            return;
        }
        let request = LeaseRevokeRequest { id: lease };
        if let Err((_, rpc_error)) = self.client.call_once(|rpc| rpc.revoke(request.clone())).await
        {
            debug!(?rpc_error, "cannot revoke an etcd lease that is not needed any more");
        }
    }
}

#[async_trait]
impl Registry for EtcdRegistry {
    async fn config(&self) -> Result<ConfigText, RegistryError> {
        let key = self.keys.config();
        let found = self.config_key().await?;
        Ok(ConfigText {
            place: format!("etcd key {key}"),
            text: found.map(|kv| String::from_utf8_lossy(&kv.value).into()),
        })
    }

    async fn config_changed(&self, seen: &ConfigText) -> Result<ConfigText, RegistryError> {
        let mut watch = ConfigKeyWatch::open(&self.client, self.keys.config()).await?;
        loop {
            // Read after the watch is open, so that no change falls in between.
            let config = self.config().await?;
            if config != *seen {
                return Ok(config);
            }
            watch.changed().await?;
        }
    }

    async fn set_config(&self, was: &ConfigText, text: &str) -> Result<(), RegistryError> {
        let found = self.config_key().await?;
        let present = found.as_ref().map(|kv| String::from_utf8_lossy(&kv.value));
        if present.as_deref() != was.text.as_deref() {
            return Err(RegistryError::ConfigConflict);
        }
        let key = self.keys.config();
        let revision = found.map_or(0, |kv| kv.mod_revision);
        let request = TxnRequest {
            compare: vec![changed_at(key.into(), revision)],
            success: vec![put(key.into(), text, 0)],
            failure: Vec::new(),
        };
        let answer = self.txn(&format!("write etcd key {key}"), request).await?;
        // An answer may have been lost after the first attempt had done it.
        let ours = answer.repeated && self.config().await?.text.as_deref() == Some(text);
        if answer.value.succeeded || ours { Ok(()) } else { Err(RegistryError::ConfigConflict) }
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        let denied = match list::list(&self.client, &self.keys).await {
            Err(error @ RegistryError::Denied { .. }) if !self.keys.is_ownerless() => error,
            listed => return listed,
        };
        self.keys.set_ownerless(true);
        let Ok(listed) = list::list(&self.client, &self.keys).await else {
            self.keys.set_ownerless(false);
            return Err(denied);
        };
        warn!(
            "this user may not read {}: as with flanneld, this node has its lease by its public address alone, until it is started \
             again",
            self.keys.owners()
        );
        Ok(listed)
    }

    /// Writes first and looks afterwards, because etcd compares keys and not addresses: of two that overlap, the later one sees
    /// the earlier one and goes. It counts as a lease of this node, which another try gives up, if that is interrupted.
    async fn create(&self, key: &str, write: &NewRecord) -> Result<Record, RegistryError> {
        let record = self.put_anew(&format!("create the lease {key}"), key, None, write).await?;
        match list::overlapping(&self.client, &self.keys, &record).await? {
            None => Ok(record),
            Some(other) => {
                self.delete(&record).await?;
                Err(conflict(Some(other)))
            }
        }
    }

    async fn update(&self, was: &Record, write: &NewRecord) -> Result<Record, RegistryError> {
        let (key, operation) = (&*was.key, format!("update the lease {}", was.key));
        // The etcd lease that we granted before serves again. Another's may be attached to more than this record.
        if let Some(ttl) = write.ttl.filter(|_| was.owner.is_some() && was.owner == write.owner)
            && was.token != 0
            && fits(self.keep_alive(&operation, was.token).await?, ttl)
        {
            return self.put(&operation, key, Some(was), write, was.token.cast_signed()).await;
        }
        self.put_anew(&operation, key, Some(was), write).await
    }

    async fn touch(&self, was: &Record, ttl: Option<Duration>) -> Result<Record, RegistryError> {
        let operation = format!("renew the lease {}", was.key);
        let answer = self.txn(&operation, lease_txn::check(&self.keys, was)).await?;
        if !answer.value.succeeded {
            return Err(conflict(lease_txn::found(&was.key, answer.value)));
        }
        let Some(ttl) = ttl else {
            return Ok(was.clone());
        };
        if was.token != 0 && fits(self.keep_alive(&operation, was.token).await?, ttl) {
            return Ok(was.clone());
        }
        // It has ended just now, or it was granted for another time.
        let Ok(value) = was.value.clone() else {
            return Ok(was.clone());
        };
        let write = NewRecord { value, owner: was.owner.clone(), ttl: Some(ttl) };
        self.put_anew(&operation, &was.key, Some(was), &write).await
    }

    async fn delete(&self, was: &Record) -> Result<(), RegistryError> {
        let operation = format!("delete the lease {}", was.key);
        let answer = self.txn(&operation, lease_txn::remove(&self.keys, was)).await?;
        if !answer.value.succeeded {
            let current = lease_txn::found(&was.key, answer.value);
            if current.is_some() || !answer.repeated {
                return Err(conflict(current));
            }
        }
        self.revoke_ours(Some(was)).await;
        Ok(())
    }

    fn watch(&self, since: Snapshot) -> BoxStream<'static, Result<Change, RegistryError>> {
        etcd_watch::stream(Arc::clone(&self.client), Arc::clone(&self.keys), since.revision)
    }
}

fn conflict(current: Option<Record>) -> RegistryError {
    RegistryError::Conflict { current: current.map(Box::new) }
}

/// Whether a record is what `write` with `lease` leaves behind.
fn is_as_written(record: &Record, write: &NewRecord, lease: i64) -> bool {
    record.value.as_ref() == Ok(&write.value)
        && record.owner == write.owner
        && record.token.cast_signed() == lease
}

/// A time as etcd counts it, never shorter than asked for.
fn seconds(ttl: Duration) -> i64 {
    let up = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    i64::try_from(up).unwrap_or(MAX_TTL).clamp(1, MAX_TTL)
}

/// Whether an etcd lease of `granted` seconds is what is granted for `ttl`.
fn fits(granted: i64, ttl: Duration) -> bool {
    let wanted = seconds(ttl);
    granted == wanted || (wanted..=SHORTEST_GRANTED).contains(&granted)
}

/// A number that no other lease has, except by a chance of one in 2^63 for each.
fn new_lease_id() -> i64 {
    // Each hasher of this kind has random keys.
    let random = RandomState::new().build_hasher().finish();
    (random >> 1).max(1).cast_signed()
}

/// etcd's own limit, in seconds.
const MAX_TTL: i64 = 9_000_000_000;

/// etcd makes leases last for one and a half elections at least, and an election takes 50 s at most.
const SHORTEST_GRANTED: i64 = 75;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up_to_what_etcd_can_count() {
        for (ttl, expected) in [
            (Duration::ZERO, 1),
            (Duration::from_millis(1), 1),
            (Duration::from_millis(1001), 2),
            (Duration::from_secs(86_400), 86_400),
            (Duration::MAX, MAX_TTL),
        ] {
            assert_eq!(seconds(ttl), expected, "{ttl:?}");
        }
    }

    #[test]
    fn a_lease_serves_again_unless_it_is_for_another_time() {
        let day = Duration::from_secs(86_400);
        assert!(fits(86_400, day));
        assert!(!fits(0, day), "it has ended");
        assert!(!fits(3_600, day), "it would end too early");
        assert!(!fits(86_400, Duration::from_secs(3_600)), "it would stay too long");
        assert!(fits(2, Duration::from_secs(1)), "etcd grants no less");
    }

    #[test]
    fn lease_ids_are_valid_and_differ() {
        let (one, two) = (new_lease_id(), new_lease_id());
        assert!(one > 0 && two > 0);
        assert_ne!(one, two);
    }
}
