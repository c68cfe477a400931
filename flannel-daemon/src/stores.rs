//! The stores that a daemon can keep its lease in, by name.

#[cfg(feature = "kubernetes")]
mod kubernetes;

use std::{collections::BTreeMap, error::Error, fmt, future::Future, path::PathBuf, sync::Arc};

use flannel_core::{NetworkConfig, NodeId, Store};
#[cfg(feature = "etcd")]
use flannel_store::EtcdRegistry;
use flannel_store::{FileRegistry, FileStore, MemoryCluster, Registry, RegistryError};
use futures::future::{BoxFuture, FutureExt};

use crate::{InvalidOptions, Orchestrator, StoreOptions, error::OpenStoreError};

/// Constructors of stores by name. An embedder [adds](Self::add) its own.
#[derive(Clone)]
pub struct Stores(BTreeMap<String, Arc<dyn Construct>>);

trait Construct: Send + Sync {
    fn construct(&self, request: &StoreRequest<'_>) -> Result<StorePlan, InvalidOptions>;
}

impl<F> Construct for F
where
    F: Fn(&StoreRequest<'_>) -> Result<StorePlan, InvalidOptions> + Send + Sync,
{
    fn construct(&self, request: &StoreRequest<'_>) -> Result<StorePlan, InvalidOptions> {
        self(request)
    }
}

/// What a store is made of.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct StoreRequest<'a> {
    /// Its options.
    pub options: &'a StoreOptions,
    /// The network to store if it has none.
    pub network: Option<&'a NetworkConfig>,
    /// Whether what is not there, such as a folder, is made. Operators only look.
    pub create: bool,
}

/// A store that can be opened: its options are valid, and nothing was touched.
pub struct StorePlan {
    open: BoxFuture<'static, Result<OpenStore, Box<dyn Error + Send + Sync>>>,
    /// For people.
    store: String,
    pub(crate) identity: Option<String>,
    pub(crate) reads: Vec<PathBuf>,
    pub(crate) writes: Vec<PathBuf>,
}

/// A store that is open.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenStore {
    /// An orchestrator, which chooses subnets, knows which node this is, and wants to know how it is.
    Orchestrator(Box<dyn Orchestrator>),
    /// A key-value engine: the daemon allocates, fences and retries.
    Registry(Box<dyn Registry>),
    /// A store that chooses subnets itself, and knows which node this is.
    Store(Arc<dyn Store>, NodeId),
}

impl Stores {
    /// No stores at all.
    pub const fn empty() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds a store under a name; replaces the one that had it.
    ///
    /// The constructor says whether the options are valid, and touches nothing: what it returns is opened later.
    #[must_use]
    pub fn add(
        mut self,
        name: &str,
        constructor: impl Fn(&StoreRequest<'_>) -> Result<StorePlan, InvalidOptions>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.0.insert(name.into(), Arc::new(constructor));
        self
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Opens a store to look at and change what is in it, as operators do: nothing is made that is not there.
    ///
    /// # Errors
    ///
    /// [`OpenStoreError`] that names the store.
    pub async fn open(&self, options: &StoreOptions) -> Result<Box<dyn Registry>, OpenStoreError> {
        let plan = self.plan(&StoreRequest { options, network: None, create: false })?;
        match plan.open().await? {
            OpenStore::Registry(registry) => Ok(registry),
            OpenStore::Orchestrator(_) | OpenStore::Store(..) => {
                Err(OpenStoreError::NoRegistry { store: options.to_string() })
            }
        }
    }

    /// Validates what is asked for.
    ///
    /// # Errors
    ///
    /// [`InvalidOptions`] for an unknown name or options that the store cannot use.
    pub(crate) fn plan(&self, request: &StoreRequest<'_>) -> Result<StorePlan, InvalidOptions> {
        let name = &request.options.name;
        let Some(constructor) = self.0.get(name) else {
            let known: Vec<_> = self.names().collect();
            let known = known.join(", ");
            let reason = format!("there is no store {name:?}, expected one of: {known}");
            return Err(InvalidOptions::new(reason));
        };
        let plan = constructor.construct(request)?;
        Ok(StorePlan { store: request.options.to_string(), ..plan })
    }
}

impl Default for Stores {
    /// Those of this project that its features have.
    fn default() -> Self {
        let stores = Self::empty().add("file", file).add("memory", memory);
        #[cfg(feature = "etcd")]
        let stores = stores.add("etcd", etcd);
        #[cfg(feature = "kubernetes")]
        let stores = stores.add("kubernetes", kubernetes::plan);
        stores
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stores").field(&self.names().collect::<Vec<_>>()).finish()
    }
}

impl StorePlan {
    /// A store that this future opens.
    pub fn new<E: Into<Box<dyn Error + Send + Sync>>>(
        open: impl Future<Output = Result<OpenStore, E>> + Send + 'static,
    ) -> Self {
        let open = async { open.await.map_err(Into::into) }.boxed();
        let (store, identity) = (String::new(), None);
        Self { open, store, identity, reads: Vec::new(), writes: Vec::new() }
    }

    /// What tells this network from others on the host: two nodes with the same do not run on one host. Without it, nobody looks.
    #[must_use]
    pub fn with_identity(mut self, identity: impl fmt::Display) -> Self {
        self.identity = Some(identity.to_string());
        self
    }

    /// A file that the store reads, for the sandbox. It may be replaced while the node runs.
    #[must_use]
    pub fn reads(mut self, file: impl Into<PathBuf>) -> Self {
        self.reads.push(file.into());
        self
    }

    /// A folder that the store writes to, for the sandbox.
    #[must_use]
    pub fn writes(mut self, folder: impl Into<PathBuf>) -> Self {
        self.writes.push(folder.into());
        self
    }
}

impl StorePlan {
    pub(crate) async fn open(self) -> Result<OpenStore, OpenStoreError> {
        let Self { open, store, .. } = self;
        open.await.map_err(|source| OpenStoreError::Open { store, source })
    }
}

impl fmt::Debug for StorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorePlan").field("identity", &self.identity).finish_non_exhaustive()
    }
}

#[cfg(feature = "etcd")]
fn etcd(request: &StoreRequest<'_>) -> Result<StorePlan, InvalidOptions> {
    let config = &request.options.etcd;
    let registry = EtcdRegistry::new(config).map_err(InvalidOptions::new)?;
    let open = async { Ok::<_, RegistryError>(OpenStore::Registry(Box::new(registry))) };
    let identity = format!("{:?} {}", config.endpoints, config.prefix);
    let files = [&config.ca, &config.cert, &config.key].into_iter().flatten();
    let plan = StorePlan::new(open).with_identity(identity);
    Ok(files.filter_map(|file| file.path()).fold(plan, StorePlan::reads))
}

fn file(request: &StoreRequest<'_>) -> Result<StorePlan, InvalidOptions> {
    let folder = PathBuf::from(&request.options.location);
    if folder.as_os_str().is_empty() {
        let reason = "the store file needs a folder, as in file:/var/lib/leases";
        return Err(InvalidOptions::new(reason));
    }
    let identity = folder.canonicalize().unwrap_or_else(|_| folder.clone());
    let (path, network, create) = (folder.clone(), request.network.cloned(), request.create);
    let open = async move {
        if !create && !path.is_dir() {
            return Err(format!("there is no folder {}", path.display()).into());
        }
        if let Some(network) = &network {
            FileStore::init(&path, network).await?;
        }
        let registry = FileRegistry::open(&path).await?;
        Ok::<_, Box<dyn Error + Send + Sync>>(OpenStore::Registry(Box::new(registry)))
    };
    Ok(StorePlan::new(open).with_identity(identity.display()).writes(folder))
}

fn memory(request: &StoreRequest<'_>) -> Result<StorePlan, InvalidOptions> {
    if !request.create {
        let reason = "a store in memory has no leases outside of its node";
        return Err(InvalidOptions::new(reason));
    }
    let Some(network) = request.network else {
        let reason = "--store memory needs --network: it has none by itself";
        return Err(InvalidOptions::new(reason));
    };
    let registry = MemoryCluster::new(network).registry();
    let open = async { Ok::<_, RegistryError>(OpenStore::Registry(Box::new(registry))) };
    Ok(StorePlan::new(open))
}
