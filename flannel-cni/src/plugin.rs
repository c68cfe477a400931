use flannel_netlink::Namespace;

use crate::{
    bridge, flannel, host_local, loopback, portmap,
    protocol::{AddResult, Attachment, Code, Config, Environment, Error, Verb, Version},
    sandbox::Sandbox,
};

/// The plugins of this crate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names are those of the plugins")]
pub enum Plugin {
    Bridge,
    Flannel,
    HostLocal,
    Loopback,
    Portmap,
}

impl Plugin {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Bridge, Self::Flannel, Self::HostLocal, Self::Loopback, Self::Portmap];

    /// What configurations call it, and what its program is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Flannel => "flannel",
            Self::HostLocal => "host-local",
            Self::Loopback => "loopback",
            Self::Portmap => "portmap",
        }
    }

    /// The plugin of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plugin| plugin.name() == name)
    }
}

/// What a plugin is asked for.
#[derive(Clone, Debug)]
pub struct Call {
    /// The verb, and what it is about.
    pub environment: Environment,
    /// The plugin's configuration.
    pub config: Config,
    /// Where the node's side is: bridge, rules, routes.
    pub host: Namespace,
    /// The container's namespace, if the caller has it open. Otherwise it is opened by its path.
    pub sandbox: Option<Namespace>,
}

impl Call {
    /// A call from the namespace of this thread.
    ///
    /// # Errors
    ///
    /// When `/proc` is not mounted.
    pub fn new(environment: Environment, config: Config) -> Result<Self, Error> {
        let host = Namespace::current()
            .map_err(|error| Error::new(Code::Io, crate::sandbox::chain(&error)))?;
        Ok(Self { environment, config, host, sandbox: None })
    }

    /// The interface that it is about.
    pub(crate) fn attachment(&self) -> Attachment {
        Attachment {
            container_id: self.environment.container_id.clone(),
            interface: self.environment.interface.clone(),
        }
    }

    /// The container's namespace; `None` if it has none or is gone, which only `DEL` may find.
    pub(crate) fn sandbox(&self) -> Result<Option<Sandbox>, Error> {
        Sandbox::open(self)
    }

    /// The container's namespace, which has to be there.
    pub(crate) fn existing_sandbox(&self) -> Result<Sandbox, Error> {
        self.sandbox()?.ok_or_else(|| {
            let path = self.environment.netns.as_deref().unwrap_or_default();
            Error::new(
                Code::UnknownContainer,
                format!("failed to open netns {path:?}: it does not exist"),
            )
        })
    }
}

/// Does what the verb of `call` says, and returns what `ADD` answers; other verbs answer nothing if all is well.
///
/// # Errors
///
/// What a runtime has to know: see [`Code`].
///
/// # Cancel safety
///
/// Dropping the future leaves an `ADD` or `DEL` half done, as a killed plugin does: `DEL` finishes it. A program of others that was
/// started goes on: call `DEL` after it has ended.
///
/// # Blocking
///
/// It reads files and waits for their locks in the calling thread. On a runtime that others share, it belongs into a thread of its
/// own.
pub async fn execute(plugin: Plugin, call: &Call) -> Result<Option<AddResult>, Error> {
    let (verb, version) = (call.environment.verb, call.config.version);
    let since = match verb {
        Verb::Check => Version::V0_4_0,
        Verb::Gc | Verb::Status => Version::V1_1_0,
        Verb::Add | Verb::Del | Verb::Version => Version::V0_1_0,
    };
    if version < since {
        let message = format!("config version does not allow {}", verb.text());
        return Err(Error::new(Code::IncompatibleVersion, message)
            .with_details(format!("{} is there since CNI {since}", verb.text())));
    }
    call.environment.validate()?;
    call.config.validate()?;
    match plugin {
        Plugin::Bridge => bridge::execute(call).await,
        Plugin::Flannel => flannel::execute(call).await,
        Plugin::HostLocal => host_local::execute(call),
        Plugin::Loopback => loopback::execute(call).await,
        Plugin::Portmap => portmap::execute(call).await,
    }
}
