//! A small HTTP/1.1 client that can misbehave.
//!
//! A good client library hides what these tests are about: bytes that come slowly, connections that are cut in the middle,
//! heads that no library would write. So this one is blocking, has a connection a request, and writes what it is told.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest wait for the next byte of an answer, where nobody says otherwise.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// A server as its clients see it.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Value of `Host`.
    pub(crate) host: String,
    /// Key for `Authorization: Bearer`.
    pub(crate) key: Option<String>,
}

impl Site {
    /// From `http://ADDRESS:PORT`.
    ///
    /// # Errors
    /// A text that says what is wrong with the URL.
    pub(crate) fn new(url: &str, key: Option<String>) -> Result<Self, String> {
        let rest = url.strip_prefix("http://").ok_or_else(|| format!("`{url}` does not begin with http://"))?;
        let host = rest.split('/').next().unwrap_or_default();
        let found = std::net::ToSocketAddrs::to_socket_addrs(host).map_err(|error| format!("{host}: {error}"))?;
        let address = found.into_iter().next().ok_or_else(|| format!("{host} has no address"))?;
        Ok(Self { address, host: host.to_owned(), key })
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection { stream, read: Vec::new(), at: 0 })
    }

    /// A whole request as text, with the headers that every request has.
    pub(crate) fn request(&self, method: &str, path: &str, body: Option<&[u8]>) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host);
        if let Some(key) = &self.key {
            head.push_str(&format!("Authorization: Bearer {key}\r\n"));
        }
        if let Some(body) = body {
            head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut request = head.into_bytes();
        request.extend_from_slice(body.unwrap_or_default());
        request
    }

    /// Sends a request and gives the connection, from which the answer is to be read.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn send(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Connection> {
        let body = body.map(|body| body.to_string().into_bytes());
        let mut connection = self.connect()?;
        connection.write(&self.request(method, path, body.as_deref()))?;
        Ok(connection)
    }

    /// Sends a request and reads its whole answer.
    ///
    /// # Errors
    /// What the system says; an answer that is not HTTP.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Response> {
        self.send(method, path, body)?.response()
    }

    /// `GET`.
    ///
    /// # Errors
    /// As [`Site::ask`].
    pub(crate) fn get(&self, path: &str) -> io::Result<Response> {
        self.ask("GET", path, None)
    }

    /// `POST` of JSON.
    ///
    /// # Errors
    /// As [`Site::ask`].
    pub(crate) fn post(&self, path: &str, body: &Value) -> io::Result<Response> {
        self.ask("POST", path, Some(body))
    }
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    /// Its status.
    pub(crate) status: u16,
    /// Its headers, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The first header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// The body is not JSON.
    pub(crate) fn json(&self) -> io::Result<Value> {
        serde_json::from_slice(&self.body).map_err(|error| wrong(format!("the body is not JSON: {error}")))
    }
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug)]
enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// Bytes left of the chunk that is being read.
    Chunks(u64),
    /// The connection ends.
    Close,
    /// Nothing is left.
    Done,
}

/// Head of an answer; its body is read from the connection.
#[derive(Debug)]
pub(crate) struct Head {
    /// The status.
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    framing: Framing,
}

/// A connection. Dropped, it is cut.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    at: usize,
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn broken_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended in the middle of an answer")
}

/// Whether an error says that nothing came for as long as we waited.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Connection {
    /// Longest wait for each next byte.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn wait_at_most(&mut self, time: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(time.max(Duration::from_millis(1))))
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will be written; answers can still be read.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn end_writing(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Cuts the connection.
    pub(crate) fn abort(self) {
        // It may be cut already; then there is nothing to do.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// More bytes; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        if self.at > 0 && self.at == self.read.len() {
            self.read.clear();
            self.at = 0;
        }
        let mut piece = [0; 16 << 10];
        let bytes = loop {
            match self.stream.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.read.extend_from_slice(&piece[..bytes]);
        Ok(bytes > 0)
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(length) = self.read[self.at..].iter().position(|byte| *byte == b'\n') {
                let line = self.read[self.at..self.at + length].to_vec();
                self.at += length + 1;
                return Ok(line.strip_suffix(b"\r").unwrap_or(&line).to_vec());
            }
            if self.read.len() - self.at > HEAD_BYTES_MAX {
                return Err(wrong("a line of the answer has no end"));
            }
            if !self.fill()? {
                return Err(broken_off());
            }
        }
    }

    /// Reads the head of the answer to a request with a body (not to `HEAD`).
    ///
    /// # Errors
    /// What the system says; not HTTP.
    pub(crate) fn head(&mut self) -> io::Result<Head> {
        let mut head = self.any_head()?;
        // Interim answers say nothing.
        while (100..200).contains(&head.status) {
            head = self.any_head()?;
        }
        Ok(head)
    }

    fn any_head(&mut self) -> io::Result<Head> {
        let first = String::from_utf8_lossy(&self.line()?).into_owned();
        let mut words = first.split(' ');
        let status = match (words.next(), words.next().map(str::parse)) {
            (Some("HTTP/1.1" | "HTTP/1.0"), Some(Ok(status))) => status,
            _ => return Err(wrong(format!("not the first line of an answer: {first:?}"))),
        };
        let mut headers = Vec::new();
        loop {
            let line = String::from_utf8_lossy(&self.line()?).into_owned();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| wrong(format!("not a header: {line:?}")))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let value = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let framing = match (value("transfer-encoding"), value("content-length")) {
            _ if matches!(status, 100..=199 | 204 | 304) => Framing::Done,
            (Some(_), _) => Framing::Chunks(0),
            (None, Some(length)) => Framing::Length(length.parse().map_err(|_| wrong("no length"))?),
            (None, None) => Framing::Close,
        };
        Ok(Head { status, headers, framing })
    }

    /// The next bytes of a body, as they come; none at its end.
    ///
    /// # Errors
    /// What the system says; a body that breaks off.
    pub(crate) fn piece(&mut self, head: &mut Head) -> io::Result<Option<Vec<u8>>> {
        let most = match &mut head.framing {
            Framing::Done => return Ok(None),
            Framing::Close => u64::MAX,
            Framing::Length(0) => {
                head.framing = Framing::Done;
                return Ok(None);
            }
            Framing::Length(left) => *left,
            Framing::Chunks(left) => {
                if *left == 0 {
                    let line = self.line()?;
                    let text = String::from_utf8_lossy(&line).into_owned();
                    let digits = text.split(';').next().unwrap_or_default().trim().to_owned();
                    *left = u64::from_str_radix(&digits, 16).map_err(|_| wrong(format!("not a chunk: {text:?}")))?;
                    if *left == 0 {
                        while !self.line()?.is_empty() {}
                        head.framing = Framing::Done;
                        return Ok(None);
                    }
                }
                *left
            }
        };
        if self.at == self.read.len() && !self.fill()? {
            return match head.framing {
                Framing::Close => {
                    head.framing = Framing::Done;
                    Ok(None)
                }
                _ => Err(broken_off()),
            };
        }
        let bytes = usize::try_from(most).unwrap_or(usize::MAX).min(self.read.len() - self.at);
        let piece = self.read[self.at..self.at + bytes].to_vec();
        self.at += bytes;
        match &mut head.framing {
            Framing::Length(left) => *left -= bytes as u64,
            Framing::Chunks(left) => {
                *left -= bytes as u64;
                if *left == 0 && !self.line()?.is_empty() {
                    return Err(wrong("a chunk is longer than it says"));
                }
            }
            Framing::Close | Framing::Done => {}
        }
        Ok(Some(piece))
    }

    /// Reads a whole answer; the connection may be used again.
    ///
    /// # Errors
    /// What the system says; not HTTP; broken off.
    pub(crate) fn next_response(&mut self) -> io::Result<Response> {
        let mut head = self.head()?;
        let mut body = Vec::new();
        while let Some(piece) = self.piece(&mut head)? {
            body.extend_from_slice(&piece);
        }
        Ok(Response { status: head.status, headers: head.headers, body })
    }

    /// Reads a whole answer.
    ///
    /// # Errors
    /// As [`Connection::next_response`].
    pub(crate) fn response(mut self) -> io::Result<Response> {
        self.next_response()
    }

    /// Reads the answer to `HEAD`, which has no body whatever its headers say.
    ///
    /// # Errors
    /// As [`Connection::next_response`].
    pub(crate) fn response_to_head(mut self) -> io::Result<Response> {
        let Head { status, headers, .. } = self.head()?;
        Ok(Response { status, headers, body: Vec::new() })
    }

    /// Waits until the server closes the connection, reading what it may still send. The time of the end, or none if it was
    /// still open at `deadline`.
    pub(crate) fn closed_before(&mut self, deadline: Instant) -> Option<Instant> {
        let mut piece = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.wait_at_most(left).is_err() {
                return None;
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return Some(Instant::now()),
                Ok(_) => {}
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                // A reset is an end, too.
                Err(_) => return Some(Instant::now()),
            }
        }
    }
}

/// An answer that is read event by event.
#[derive(Debug)]
pub(crate) struct Events {
    connection: Connection,
    head: Head,
    text: Vec<u8>,
}

impl Events {
    /// Reads the head of the answer.
    ///
    /// # Errors
    /// What the system says; not HTTP.
    pub(crate) fn of(mut connection: Connection) -> io::Result<Self> {
        let head = connection.head()?;
        Ok(Self { connection, head, text: Vec::new() })
    }

    /// The status of the answer.
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    /// What follows the next `data:`; comments are passed over, none comes after the end.
    ///
    /// # Errors
    /// What the system says; broken off.
    pub(crate) fn next_data(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.text.drain(..end + 2).collect();
                if let Some(data) = event.strip_prefix(b"data: ") {
                    return Ok(Some(String::from_utf8_lossy(data).trim_end().to_owned()));
                }
                continue;
            }
            match self.connection.piece(&mut self.head)? {
                Some(piece) => self.text.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }

    /// Cuts the connection.
    pub(crate) fn abort(self) {
        self.connection.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A server that answers one connection with these bytes, a few at a time.
    fn answering(bytes: &'static [u8]) -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            bytes.chunks(3).for_each(|piece| stream.write_all(piece).unwrap());
        });
        Site { address, host: "x".into(), key: Some("k".into()) }
    }

    #[test]
    fn bodies_of_all_framings_are_read() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhello",
        ] {
            let response = answering(bytes).get("/").unwrap();
            assert_eq!((response.status, response.text().as_str()), (200, "hello"));
        }
    }

    #[test]
    fn a_body_that_breaks_off_is_no_answer() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200",
            b"nonsense\r\n\r\n",
        ] {
            answering(bytes).get("/").unwrap_err();
        }
    }

    #[test]
    fn events_come_one_by_one_without_comments() {
        let site = answering(b"HTTP/1.1 200 OK\r\n\r\n: keep-alive\n\ndata: {\"a\":1}\n\n: x\n\ndata: [DONE]\n\n");
        let mut events = Events::of(site.send("GET", "/", None).unwrap()).unwrap();
        assert_eq!(events.status(), 200);
        assert_eq!(events.next_data().unwrap().as_deref(), Some("{\"a\":1}"));
        assert_eq!(events.next_data().unwrap().as_deref(), Some("[DONE]"));
        assert_eq!(events.next_data().unwrap(), None);
    }

    #[test]
    fn a_site_is_read_from_a_url() {
        let site = Site::new("http://127.0.0.1:8080/v1", None).unwrap();
        assert_eq!((site.address.port(), site.host.as_str()), (8080, "127.0.0.1:8080"));
        assert!(Site::new("https://127.0.0.1", None).is_err());
    }
}
