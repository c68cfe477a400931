use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use flannel_netlink::{
    Connection, Namespace, list_routes,
    state::{IpFamily, Object, Route},
};
use ipnetwork::IpNetwork;
use tokio::task::JoinSet;

use crate::{
    Blocks, Endpoint, Pod, Process, ProcessError, TestbedError,
    kernel::{Kernel, RTPROT_STATIC},
    probe::{Ping, PingError, Pong, ping, serve},
    switch::Switch,
    uplink::Uplink,
};

/// A host of a testbed: a network namespace that forwards, with the uplink `eth0` to the switch.
///
/// Clones are the same host.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    number: u32,
    kernel: Kernel,
    switch: Arc<Switch>,
    state: Mutex<State>,
    _echo: JoinSet<()>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) uplink: Uplink,
    pub(crate) pods: Vec<Pod>,
    /// The task that loses packets, if any.
    pub(crate) loss: JoinSet<()>,
}

impl Host {
    pub(crate) async fn create(
        number: u32,
        switch: &Arc<Switch>,
        uplink: Uplink,
    ) -> Result<Self, TestbedError> {
        let kernel = Kernel::create(&format!("host{number}")).await?;
        let mut echo = JoinSet::new();
        serve(kernel.namespace(), &mut echo)
            .map_err(|source| TestbedError::Echo { place: kernel.place().to_owned(), source })?;
        let host = Self {
            inner: Arc::new(Inner {
                number,
                kernel,
                switch: Arc::clone(switch),
                state: Mutex::new(State { uplink, pods: Vec::new(), loss: JoinSet::new() }),
                _echo: echo,
            }),
        };
        host.create_uplink().await?;
        Ok(host)
    }

    /// Its name, such as `host1`.
    pub fn name(&self) -> &str {
        self.inner.kernel.place()
    }

    /// Its network namespace, for a node or a socket to work in.
    pub fn namespace(&self) -> &Namespace {
        self.inner.kernel.namespace()
    }

    /// A netlink connection of one's own into its namespace.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Namespace`].
    pub fn connect(&self) -> Result<Connection, TestbedError> {
        Connection::open(self.namespace())
            .map_err(|source| TestbedError::socket(self.name(), source))
    }

    /// Its name, namespace and uplink addresses, for probes.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.name(), self.namespace(), &self.addresses())
    }

    /// The addresses that its uplink has or, while the device is missing, had.
    pub fn addresses(&self) -> Vec<IpNetwork> {
        self.state().uplink.addresses.clone()
    }

    /// Its first uplink address, IPv4 before IPv6.
    pub fn ip(&self) -> IpAddr {
        let first = self.endpoint().ips().next();
        first.expect("an uplink has at least one address")
    }

    /// Its first IPv4 uplink address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.endpoint().ipv4()
    }

    /// Its first IPv6 uplink address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.endpoint().ipv6()
    }

    /// Its pods.
    pub fn pods(&self) -> Vec<Pod> {
        self.state().pods.clone()
    }

    /// Sends one probe from the host itself, see [`ping`].
    ///
    /// # Errors
    ///
    /// As [`ping`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses the answer only.
    pub async fn ping(&self, to: IpAddr) -> Result<Pong, PingError> {
        ping(self, to, Ping::default()).await
    }

    /// Routes `destination` through the uplink of `next`, in each family that both have. A route to the same destination
    /// is replaced.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the route there or not.
    pub async fn add_route(
        &self,
        destination: impl Into<Blocks>,
        next: &Self,
    ) -> Result<(), TestbedError> {
        let uplink = self.kernel().link(UPLINK).await?;
        let gateways: Vec<_> = next.endpoint().ips().collect();
        let routes: Vec<_> = destination
            .into()
            .iter()
            .filter_map(|block| {
                let gateway = gateways.iter().find(|ip| ip.is_ipv4() == block.is_ipv4())?;
                let route = Route::new(block, RTPROT_STATIC);
                Some(Object::Route(route.via_gateway(*gateway, uplink.index)))
            })
            .collect();
        self.kernel().put(&routes).await
    }

    /// Deletes every route to exactly `destination` from the main table, whoever made it, and says how many there were.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves a part of them.
    pub async fn delete_route(
        &self,
        destination: impl Into<Blocks>,
    ) -> Result<usize, TestbedError> {
        let mut connection = self.kernel().connection().await;
        let mut deleted = 0;
        for block in destination.into().iter() {
            let operation = || format!("delete route {block}");
            let failed = |source| TestbedError::kernel(operation(), self.name(), source);
            let family = IpFamily::of(&block.ip());
            let routes = list_routes(&mut connection, Route::MAIN, family).await.map_err(failed)?;
            for route in routes.iter().filter(|route| route.destination == block) {
                connection.apply_one(route.delete()).await.map_err(failed)?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }

    /// Starts a program inside the host's network namespace. It sees this machine's files and processes.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Spawn`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(host: flannel_testbed::Host, command: std::process::Command) -> Result<(), flannel_testbed::ProcessError> {
    /// use std::time::Duration;
    ///
    /// let mut node = host.spawn(command)?;
    /// node.line(Duration::from_secs(5), |line| line.contains("ready")).await?;
    /// println!("{} bytes", node.resident_memory()?);
    /// node.terminate()?;
    /// assert!(node.wait().await?.success());
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn(&self, command: Command) -> Result<Process, ProcessError> {
        Process::spawn(self.namespace(), self.name(), command)
    }

    /// Runs a program as [`spawn`](Self::spawn) does, waits for its end and returns what it printed.
    ///
    /// # Errors
    ///
    /// [`ProcessError`]; [`ProcessError::Failed`] when its exit code is not 0.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills the program.
    pub async fn run(&self, command: Command) -> Result<String, ProcessError> {
        self.spawn(command)?.finish().await
    }

    pub(crate) fn number(&self) -> u32 {
        self.inner.number
    }

    pub(crate) fn kernel(&self) -> &Kernel {
        &self.inner.kernel
    }

    pub(crate) fn switch(&self) -> &Arc<Switch> {
        &self.inner.switch
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<&Host> for Endpoint {
    fn from(host: &Host) -> Self {
        host.endpoint()
    }
}

/// The name of a host's network card.
pub(crate) const UPLINK: &str = "eth0";
