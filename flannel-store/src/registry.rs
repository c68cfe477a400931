//! The small contract of a key-value engine.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;

mod record;
mod snapshot;

pub use record::{Lifetime, NewRecord, Record, RecordError};
pub use snapshot::{Change, Snapshot};

/// A key-value engine that keeps the leases of one network, as one node is connected to it.
///
/// Implement these methods over an engine (etcd, Consul, a SQL table, a replicated log), and
/// [`RegistryStore`](crate::RegistryStore) makes a [`Store`](flannel_core::Store) of it: allocation, fencing, adoption of flannel's
/// leases and retries are there, and not in the engine. Run `registry_conformance!` over it (feature `testing`), and
/// `flannel_core::store_conformance!` over the result;
/// `tests/custom.rs` in this crate is a small engine with everything that takes.
///
/// # What an engine has to offer
///
/// * One atomic operation that compares and writes one record: a transaction in etcd, `cas` in Consul, `UPDATE ... WHERE
///   revision = $1` in SQL.
/// * Reads that see every write that was answered before. A read from a follower that lags is not enough.
/// * A number that grows with every write, the *revision*. Each record has that of its last visible write. A deleted and
///   recreated record has a greater one.
/// * Records that go away by themselves when their time is over.
/// * A way to follow changes. Where there is none, list again at an interval and use [`Snapshot::changes_to`].
///
/// | here | etcd | Consul | SQL |
/// | --- | --- | --- | --- |
/// | [`list`](Self::list) | one range read, its header's revision | one recursive read, its index | `SELECT`, and the counter |
/// | [`create`](Self::create) | if version is 0, put with a lease; then list | `cas=0` with a session; then list | `INSERT` with an exclusion constraint on the blocks |
/// | [`update`](Self::update) | if the mod revision is as it was, put | `cas=index` | `UPDATE ... WHERE revision =` |
/// | [`touch`](Self::touch) | read and compare, then keep the lease alive | renew the session | update the expiry column alone |
/// | [`delete`](Self::delete) | if the mod revision is as it was, delete | `DELETE ?cas=` | `DELETE ... WHERE revision =` |
/// | [`watch`](Self::watch) | watch from the revision | blocking query and [`Snapshot::changes_to`] | `LISTEN`, or list again |
///
/// # Clauses
///
/// * A record's *value* is stored byte for byte, because flannel reads it. Its *owner* is stored beside it, in whatever way
///   the engine has (a second key in the same transaction, a column), and compared and written together with it.
/// * A record that the engine did not write itself, such as flannel's or one written by hand, has no owner.
/// * A record without an expiry is a *reservation*. No operation here gives it one unless asked to.
/// * No two nodes get records that share an address ([`Record::overlaps`]), whatever their keys: IPv4 beside dual stack,
///   with different lengths. `create` fails with [`RegistryError::Conflict`] if there is a live record that overlaps. Where
///   the engine compares one key and nothing else, it writes, then reads everything as of that write, and deletes what it
///   wrote if there is an older record that overlaps: of two that do this at the same time, the first one stays.
/// * A record that has lapsed is as good as absent: `create` replaces it, and watchers are told that it was deleted. An
///   engine may still list it as [`Lifetime::Lapsed`], so that its owner finds its old subnet; it may be updated and touched
///   as long as nobody else took its key or an address of it.
/// * `list` shows every record that would make `create` fail, also those that are no leases.
/// * Every call answers or fails in bounded time; [`RegistryStore`](crate::RegistryStore) adds no timeouts of its own.
///
/// # Cancel safety
///
/// Every future may be dropped at any await. The operation has then happened completely, or not at all, or it happens a
/// little later; never in part.
#[async_trait]
pub trait Registry: fmt::Debug + Send + Sync + 'static {
    /// Reads the network's configuration.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Denied`] and [`RegistryError::Unavailable`]. That there is none is not an error.
    async fn config(&self) -> Result<ConfigText, RegistryError>;

    /// Waits until the network's configuration is another than `seen`, and returns it.
    ///
    /// Unless an engine has a better way, which most have, it is read every few seconds. Changes that follow each other closely may be
    /// folded into the last one.
    ///
    /// # Errors
    ///
    /// As for [`config`](Self::config).
    async fn config_changed(&self, seen: &ConfigText) -> Result<ConfigText, RegistryError> {
        poll_config(self, seen, Duration::from_secs(5)).await
    }

    /// Replaces the network's configuration `was` by `text`, if it is still the same. For operators; nodes never call it, so
    /// that an engine need not offer it.
    ///
    /// # Errors
    ///
    /// [`RegistryError::ConfigConflict`] if it is not; nothing was written. [`RegistryError::Denied`] where that is not offered.
    /// Else as for [`create`](Self::create).
    async fn set_config(&self, was: &ConfigText, _text: &str) -> Result<(), RegistryError> {
        Err(RegistryError::Denied {
            operation: format!("write the network config in {}", was.place),
            source: "this store takes it from elsewhere".into(),
        })
    }

    /// Reads all records, in one consistent read.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Denied`] and [`RegistryError::Unavailable`].
    async fn list(&self) -> Result<Snapshot, RegistryError>;

    /// Writes a record at `key` if there is none and none overlaps, and returns it.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Conflict`] with the record that is in the way; nothing stays written. [`RegistryError::Denied`] and
    /// [`RegistryError::Unavailable`]; after the latter it may have been written or not.
    async fn create(&self, key: &str, write: &NewRecord) -> Result<Record, RegistryError>;

    /// Replaces the record `was`, if it is still the same, and returns the new one.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Conflict`] if it is not; nothing was written. Else as for [`create`](Self::create).
    async fn update(&self, was: &Record, write: &NewRecord) -> Result<Record, RegistryError>;

    /// Makes the record `was` last for `ttl` from now on, if it is still the same. `None` if it is a reservation, which is
    /// only compared.
    ///
    /// Watchers see nothing of it, unless the record had lapsed, and the revision stays. A cluster renews all its leases all
    /// the time, so a renewal that everybody is told about costs the square of the number of nodes.
    ///
    /// # Errors
    ///
    /// As for [`update`](Self::update).
    async fn touch(&self, was: &Record, ttl: Option<Duration>) -> Result<Record, RegistryError>;

    /// Removes the record `was`, if it is still the same.
    ///
    /// # Errors
    ///
    /// As for [`update`](Self::update).
    async fn delete(&self, was: &Record) -> Result<(), RegistryError>;

    /// Follows all changes made after `since` was read, in the order in which they were made.
    ///
    /// Several changes of one record may be folded into the last one. After an error the stream is not asked again, and it
    /// may end at any time: in both cases the caller lists anew. Dropping it ends all work behind it.
    ///
    /// # Errors
    ///
    /// An item is [`RegistryError::Compacted`] if changes were lost, because the engine has forgotten them or the reader was
    /// too slow. Else [`RegistryError::Denied`] and [`RegistryError::Unavailable`].
    fn watch(&self, since: Snapshot) -> BoxStream<'static, Result<Change, RegistryError>>;
}

/// What points to a registry is one.
macro_rules! pointers {
    ($($pointer:ty)*) => { $(
        #[async_trait]
        impl<R: Registry + ?Sized> Registry for $pointer {
            async fn config(&self) -> Result<ConfigText, RegistryError> {
                (**self).config().await
            }

            async fn config_changed(&self, seen: &ConfigText) -> Result<ConfigText, RegistryError> {
                (**self).config_changed(seen).await
            }

            async fn set_config(&self, was: &ConfigText, text: &str) -> Result<(), RegistryError> {
                (**self).set_config(was, text).await
            }

            async fn list(&self) -> Result<Snapshot, RegistryError> {
                (**self).list().await
            }

            async fn create(&self, key: &str, new: &NewRecord) -> Result<Record, RegistryError> {
                (**self).create(key, new).await
            }

            async fn update(&self, was: &Record, new: &NewRecord) -> Result<Record, RegistryError> {
                (**self).update(was, new).await
            }

            async fn touch(
                &self,
                was: &Record,
                ttl: Option<Duration>,
            ) -> Result<Record, RegistryError> {
                (**self).touch(was, ttl).await
            }

            async fn delete(&self, was: &Record) -> Result<(), RegistryError> {
                (**self).delete(was).await
            }

            fn watch(&self, since: Snapshot) -> BoxStream<'static, Result<Change, RegistryError>> {
                (**self).watch(since)
            }
        }
    )* };
}

pointers!(&'static R Arc<R> Box<R>);

/// Reads the configuration every so often until it is another than `seen`.
pub(crate) async fn poll_config(
    registry: &(impl Registry + ?Sized),
    seen: &ConfigText,
    every: Duration,
) -> Result<ConfigText, RegistryError> {
    loop {
        let config = registry.config().await?;
        if config != *seen {
            return Ok(config);
        }
        tokio::time::sleep(every).await;
    }
}

/// The network's configuration as the engine has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigText {
    /// Where it is, for people: a path, or a key with the engine's name.
    pub place: String,
    /// flannel's JSON; `None` if there is none.
    pub text: Option<String>,
}

/// Why an engine did not do what it was asked to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The changes that were asked for cannot be had any more.
    #[error("changes after revision {revision} were lost")]
    Compacted {
        /// The last revision that the watcher has seen.
        revision: u64,
    },
    /// The network's configuration is not what the caller thought; nothing was written.
    #[error("the network config was changed by somebody else")]
    ConfigConflict,
    /// The record is not what the caller thought; nothing was written.
    #[error("{}", match current {
        Some(record) => format!("{} was changed by somebody else", record.key),
        None => "the record was removed by somebody else".into(),
    })]
    Conflict {
        /// What is there; `None` if nothing is.
        current: Option<Box<Record>>,
    },
    /// The engine refuses us, and will again until somebody changes that.
    #[error("the store refuses to {operation}")]
    Denied {
        /// What we wanted, with its object.
        operation: String,
        /// The engine's reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine does not answer, or not in time.
    #[error("cannot {operation}")]
    Unavailable {
        /// What we wanted, with its object.
        operation: String,
        /// What came in between.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
