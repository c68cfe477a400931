//! A container's network namespace.

use std::io;

use flannel_netlink::{Connection, Namespace, NamespaceError};
use tokio::runtime::Handle;

use crate::{
    plugin::Call,
    protocol::{Code, Error, Verb},
};

/// A container's network namespace, with the path that the runtime knows it by.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) path: String,
    pub(crate) namespace: Namespace,
}

impl Sandbox {
    pub(crate) fn open(call: &Call) -> Result<Option<Self>, Error> {
        let path = call.environment.netns.clone().unwrap_or_default();
        let namespace = match &call.sandbox {
            Some(namespace) => namespace.clone(),
            None if path.is_empty() => return Ok(None),
            None => match Namespace::open(&path) {
                Ok(namespace) => namespace,
                Err(NamespaceError::Open { source, .. }) if is_gone(&source) => return Ok(None),
                Err(error) => {
                    let message = format!("failed to open netns {path:?}: {}", chain(&error));
                    return Err(Error::new(Code::Io, message));
                }
            },
        };
        if namespace == call.host
            && !call.environment.netns_override
            && matches!(call.environment.verb, Verb::Add | Verb::Del)
        {
            let message = "plugin's netns and netns from CNI_NETNS should not be the same";
            return Err(Error::new(Code::InvalidNamespace, message));
        }
        Ok(Some(Self { path, namespace }))
    }

    /// Runs `prepare` inside of the namespace, then opens a socket there. It takes one thread for both.
    pub(crate) fn connect<T: Send>(
        &self,
        prepare: impl FnOnce() -> T + Send,
    ) -> Result<(T, Connection), Error> {
        let runtime = Handle::current();
        let inside = self.namespace.run(|| {
            let _runtime = runtime.enter();
            let prepared = prepare();
            Connection::open(&self.namespace).map(|connection| (prepared, connection))
        });
        let failed = |error: &dyn std::error::Error| {
            let message = format!("failed to enter netns {:?}: {}", self.path, chain(error));
            Error::new(Code::Io, message)
        };
        inside.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// An error with its reasons, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        text = format!("{text}: {reason}");
        source = reason.source();
    }
    text
}
