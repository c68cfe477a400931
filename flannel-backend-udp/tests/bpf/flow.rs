//! TCP and UDP from one namespace to a server in another.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use flannel_netlink::Namespace;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use socket2::{Domain, Socket, Type};

/// Where a flow comes from, whom it is sent to, and who serves it.
pub(crate) struct Flow {
    pub(crate) client: Namespace,
    pub(crate) device: Option<&'static str>,
    pub(crate) to: SocketAddr,
    pub(crate) server: Namespace,
    pub(crate) at: SocketAddr,
}

impl Flow {
    /// Sends a few megabytes there and as many back; an error says what went wrong.
    pub(crate) fn tcp(&self) -> Result<(), String> {
        let listener = self.server.run(|| TcpListener::bind(self.at)).unwrap().unwrap();
        let server = thread::spawn(move || -> std::io::Result<usize> {
            let (mut stream, _) = listener.accept()?;
            timeouts(&stream)?;
            let mut data = Vec::new();
            stream.read_to_end(&mut data)?;
            stream.write_all(&data)?;
            Ok(data.len())
        });
        let exchanged = self.exchange();
        // Has the server end if nobody connected.
        let _ = self.server.run(|| TcpStream::connect_timeout(&self.at, PATIENCE));
        let served = server.join().unwrap();
        match exchanged {
            Ok(true) => Ok(()),
            Ok(false) => Err("what came back is not what was sent".into()),
            Err(error) => Err(format!("{error}; the server had {served:?}")),
        }
    }

    fn exchange(&self) -> std::io::Result<bool> {
        let mut stream: TcpStream = {
            let socket = self.socket(Type::STREAM)?;
            socket.connect_timeout(&self.to.into(), PATIENCE)?;
            socket.into()
        };
        timeouts(&stream)?;
        let sent: Vec<u8> = (0..TCP_BYTES).map(|n| (n % 251) as u8).collect();
        stream.write_all(&sent)?;
        stream.shutdown(Shutdown::Write)?;
        let mut data = Vec::new();
        stream.read_to_end(&mut data)?;
        Ok(data == sent)
    }

    /// Sends datagrams of several sizes, and one send of many, and has each come back.
    pub(crate) fn udp(&self) -> Result<(), String> {
        let server = self.server.run(|| UdpSocket::bind(self.at)).unwrap().unwrap();
        let client: UdpSocket = self.socket(Type::DGRAM).unwrap().into();
        client.connect(self.to).map_err(|error| format!("connect: {error}"))?;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        }
        for (size, segment) in [(1, 0), (1400, 0), (8000, 0), (3500, 1000)] {
            let fits = |_| self.datagrams(&client, &server, size, segment);
            // A path that is found to take less costs a packet or two.
            let mut results = (0..ATTEMPTS).map(fits);
            let mut result = results.next().unwrap();
            while let (Err(_), Some(next)) = (&result, results.next()) {
                result = next;
            }
            result.map_err(|error| format!("{size} bytes of {segment}: {error}"))?;
        }
        Ok(())
    }

    fn datagrams(
        &self,
        client: &UdpSocket,
        server: &UdpSocket,
        size: usize,
        segment: i32,
    ) -> Result<(), String> {
        let parts = if segment == 0 { 1 } else { size.div_ceil(segment as usize) };
        let failed = |what: &'static str| move |error| format!("{what}: {error}");
        setsockopt(client, UdpGsoSegment, &segment).unwrap();
        let data: Vec<u8> = (0..size).map(|n| (n % 249) as u8).collect();
        let mut buffer = vec![0; 65536];
        // What an earlier attempt left.
        for socket in [client, server] {
            socket.set_nonblocking(true).unwrap();
            while socket.recv(&mut buffer).is_ok() {}
            socket.set_nonblocking(false).unwrap();
        }
        client.send(&data).map_err(failed("send"))?;
        let mut back = Vec::new();
        for part in 0..parts {
            let (len, from) = server.recv_from(&mut buffer).map_err(failed("receive"))?;
            if buffer[..len] != data[back.len()..][..len] {
                return Err(format!("part {part} is not what was sent"));
            }
            server.send_to(&buffer[..len], from).map_err(failed("answer"))?;
            let len = client.recv(&mut buffer).map_err(failed("receive the answer"))?;
            back.extend_from_slice(&buffer[..len]);
        }
        (back == data).then_some(()).ok_or_else(|| "the answer is another".into())
    }

    fn socket(&self, kind: Type) -> std::io::Result<Socket> {
        self.client
            .run(|| {
                let socket = Socket::new(Domain::for_address(self.to), kind, None)?;
                socket.bind_device(self.device.map(str::as_bytes))?;
                Ok(socket)
            })
            .unwrap()
    }
}

/// Sends a datagram to a multicast group by this device, which nobody has joined.
pub(crate) fn send_multicast(from: &Namespace, device: &str, group: IpAddr) {
    let socket =
        from.run(|| Socket::new(Domain::for_address((group, 0).into()), Type::DGRAM, None));
    let socket = socket.unwrap().unwrap();
    socket.bind_device(Some(device.as_bytes())).unwrap();
    socket.send_to(b"hello", &SocketAddr::new(group, 5353).into()).unwrap();
}

fn timeouts(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

const TCP_BYTES: usize = 3 << 20;
const ATTEMPTS: usize = 6;
/// How long a stalled connection is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
