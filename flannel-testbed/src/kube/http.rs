//! As much of HTTP/1.1 as the clients of an API server need.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use tokio::net::TcpStream;

use super::Request;

/// A connection, and what of the next request has come.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next request with its token; `None` at the end.
    pub(super) async fn request(&mut self) -> io::Result<Option<(Request, Option<String>)>> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|it| it == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await? {
                return Ok(None);
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end);
        let mut lines = head.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let header = |wanted: &str| {
            let found = head.lines().skip(1).filter_map(|line| line.split_once(':'));
            let mut found = found.filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.next().map(|(_, value)| value.trim().to_owned())
        };
        let length = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        while self.buffer.len() < length {
            if !self.more().await? {
                return Ok(None);
            }
        }
        let body = self.buffer.drain(..length).collect::<Vec<_>>();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let token = header("authorization")
            .and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned));
        let request = Request {
            method: method.into(),
            path: path.into(),
            query: query.into(),
            accept: header("accept").unwrap_or_default(),
            accept_encoding: header("accept-encoding").unwrap_or_default(),
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        Ok(Some((request, token)))
    }

    pub(super) async fn answer(
        &mut self,
        code: u16,
        retry_after: Option<u64>,
        text: &str,
    ) -> io::Result<()> {
        self.write_whole(code, retry_after, "application/json", text.as_bytes()).await
    }

    pub(super) async fn write_whole(
        &mut self,
        code: u16,
        retry_after: Option<u64>,
        content_type: &str,
        body: &[u8],
    ) -> io::Result<()> {
        let retry = retry_after.map(|it| format!("Retry-After: {it}\r\n")).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {code} Whatever\r\nContent-Type: {content_type}\r\n{retry}Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all(head.as_bytes()).await?;
        self.stream.write_all(body).await
    }

    /// Begins an answer of chunks.
    pub(super) async fn begin(
        &mut self,
        content_type: &str,
        encoding: Option<&str>,
    ) -> io::Result<()> {
        let encoding = encoding.map(|it| format!("Content-Encoding: {it}\r\n"));
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{}Transfer-Encoding: chunked\r\n\r\n",
            encoding.unwrap_or_default()
        );
        self.stream.write_all(head.as_bytes()).await
    }

    pub(super) async fn chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        // At once, as servers do: a piece on its own wakes the client up.
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.stream.write_all(&chunk).await
    }

    pub(super) async fn end(&mut self) -> io::Result<()> {
        self.stream.write_all(b"0\r\n\r\n").await
    }

    /// Reads more; `false` at the end.
    pub(super) async fn more(&mut self) -> io::Result<bool> {
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }
}

/// The value of a parameter in a query.
pub(super) fn parameter(query: &str, wanted: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.find(|(name, _)| *name == wanted)?.1;
    let mut bytes = value.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        let hex = |bytes: &mut std::str::Bytes<'_>| {
            let pair = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(str::from_utf8(&pair).ok()?, 16).ok()
        };
        decoded.push(match byte {
            b'%' => hex(&mut bytes)?,
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}
