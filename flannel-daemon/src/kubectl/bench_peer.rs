//! The two ends of a measurement between pods: one answers, the other one asks and counts.

use std::{fmt, io, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::{Instant, timeout},
};

/// What was measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Measured {
    /// What one TCP connection carried, bits per second.
    pub bits_per_second: f64,
    /// For how long it was looked at, seconds.
    pub seconds: f64,
    /// Round trips of small UDP datagrams, one after the other.
    pub round_trips: u64,
    /// Those that did not come back in time.
    pub lost: u64,
    /// Half of the round trips took no longer than this, microseconds.
    pub median_us: f64,
    /// 99 of 100 round trips took no longer than this, microseconds.
    pub p99_us: f64,
}

/// Answers on this port of all addresses until it is dropped: returns what comes by UDP, and counts what comes by TCP.
///
/// # Errors
///
/// Why the port cannot be used.
pub async fn answer(port: u16) -> io::Result<()> {
    let both: SocketAddr = ([0; 16], port).into();
    match TcpListener::bind(both).await {
        Ok(tcp) => answer_on(tcp, UdpSocket::bind(both).await?).await,
        // A kernel without IPv6.
        Err(_) => {
            let ipv4: SocketAddr = ([0; 4], port).into();
            answer_on(TcpListener::bind(ipv4).await?, UdpSocket::bind(ipv4).await?).await
        }
    }
}

async fn answer_on(tcp: TcpListener, udp: UdpSocket) -> io::Result<()> {
    let mut connections = JoinSet::new();
    let mut datagram = [0; 2048];
    loop {
        tokio::select! {
            accepted = tcp.accept() => {
                if let Ok((stream, _)) = accepted {
                    // A connection that breaks is its client's concern.
                    connections.spawn(async move { count(stream).await.ok() });
                }
            }
            Some(_) = connections.join_next() => {}
            received = udp.recv_from(&mut datagram) => {
                if let Ok((length, from)) = received {
                    udp.send_to(&datagram[..length], from).await.ok();
                }
            }
        }
    }
}

/// Reads to the end, and says how many bytes there were.
async fn count(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut all = 0_u64;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.write_all(&all.to_be_bytes()).await,
            read => all += read as u64,
        }
    }
}

/// Measures the path to whoever [answers](answer) at `address`, each way of it for `length`.
///
/// # Errors
///
/// What keeps packets from getting there.
pub async fn measure(address: SocketAddr, length: Duration) -> io::Result<Measured> {
    let (mut times, lost) = round_trips(address, length).await?;
    times.sort_unstable();
    let (bytes, took) = throughput(address, length).await?;
    Ok(Measured {
        bits_per_second: 8.0 * bytes as f64 / took.as_secs_f64(),
        seconds: took.as_secs_f64(),
        round_trips: times.len() as u64 + lost,
        lost,
        median_us: percentile(&times, 50),
        p99_us: percentile(&times, 99),
    })
}

async fn round_trips(address: SocketAddr, length: Duration) -> io::Result<(Vec<Duration>, u64)> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0; 16], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    let (mut times, mut lost) = (Vec::new(), 0);
    let (end, mut number) = (Instant::now() + length, 0_u64);
    while Instant::now() < end {
        let began = Instant::now();
        socket.send(&number.to_be_bytes()).await?;
        let returned = async {
            let mut datagram = [0; 8];
            // An answer of before may come late.
            while socket.recv(&mut datagram).await? != 8 || u64::from_be_bytes(datagram) != number {
            }
            Ok::<_, io::Error>(())
        };
        match timeout(ROUND_TRIP_LIMIT, returned).await {
            Ok(returned) => {
                returned?;
                times.push(began.elapsed());
            }
            Err(_) => lost += 1,
        }
        number += 1;
    }
    Ok((times, lost))
}

/// How many bytes arrived, and how long that took: until the other side says that it has read all of them.
async fn throughput(address: SocketAddr, length: Duration) -> io::Result<(u64, Duration)> {
    let connected = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    timeout(length + DRAIN_LIMIT, transfer(stream, length)).await.map_err(|_| {
        let stalled = "the connection opens and its data does not arrive: large packets are lost on the path, compare its MTU with the \
                       pod network's";
        io::Error::new(io::ErrorKind::TimedOut, stalled)
    })?
}

async fn transfer(mut stream: TcpStream, length: Duration) -> io::Result<(u64, Duration)> {
    let chunk = vec![0; CHUNK];
    let began = Instant::now();
    while began.elapsed() < length {
        stream.write_all(&chunk).await?;
    }
    stream.shutdown().await?;
    let mut all = [0; 8];
    stream.read_exact(&mut all).await?;
    Ok((u64::from_be_bytes(all), began.elapsed()))
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, round_trips, lost, median_us, p99_us, .. } = self;
        let gigabits = self.bits_per_second / 1e9;
        writeln!(f, "TCP, one connection, {seconds:.1} s: {gigabits:.2} Gbit/s")?;
        writeln!(
            f,
            "UDP round trips, {round_trips} one after the other: median {median_us:.0} us, p99 {p99_us:.0} us, {lost} lost"
        )
    }
}

/// What is written and read at a time.
const CHUNK: usize = 128 * 1024;
/// How long a round trip may take.
const ROUND_TRIP_LIMIT: Duration = Duration::from_secs(1);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long the rest of what was sent may take to arrive: some megabytes in buffers.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_arrives_is_counted_and_what_comes_back_is_timed() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let free = tcp.local_addr().unwrap();
        let answering = tokio::spawn(answer_on(tcp, UdpSocket::bind(free).await.unwrap()));
        let measured = measure(free, Duration::from_millis(100)).await.unwrap();
        assert!(measured.bits_per_second > 0.0 && measured.median_us > 0.0, "{measured:?}");
        assert!(measured.round_trips > 0 && measured.p99_us >= measured.median_us, "{measured:?}");
        answering.abort();
        let _ = answering.await;
        assert!(measure(free, Duration::from_millis(10)).await.is_err(), "nobody answers");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_carries_nothing_is_an_error_about_large_packets() {
        // The kernel takes the connection, and nobody reads.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let error = throughput(address, Duration::from_secs(1)).await.unwrap_err();
        assert!(error.to_string().contains("large packets are lost"), "{error}");
    }

    #[test]
    fn figures_are_two_lines() {
        let measured = Measured {
            bits_per_second: 4.5e9,
            seconds: 5.0,
            round_trips: 100,
            lost: 1,
            median_us: 61.4,
            p99_us: 180.0,
        };
        let expected = "\
TCP, one connection, 5.0 s: 4.50 Gbit/s
UDP round trips, 100 one after the other: median 61 us, p99 180 us, 1 lost
";
        assert_eq!(measured.to_string(), expected);
        let json = serde_json::to_string(&measured).unwrap();
        assert_eq!(serde_json::from_str::<Measured>(&json).unwrap(), measured);
        assert_eq!([percentile(&[], 50), percentile(&[Duration::from_micros(3)], 99)], [0.0, 3.0]);
    }
}
