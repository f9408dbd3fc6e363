//! A client that says whatever it likes, and reads HTTP/1.1 just well enough.

use core::net::SocketAddr;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use super::PATIENCE;

/// One connection.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) stream: S,
    buffer: Vec<u8>,
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Status line and fields, without the empty line.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// The fields after a chunked body.
    pub(crate) trailers: String,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a listening server");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        Self::over(stream)
    }

    /// Says that nothing more comes.
    pub(crate) fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).expect("a socket");
    }
}

impl<S: Read + Write> Client<S> {
    pub(crate) const fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the gateway reads");
    }

    /// Sends to a peer that may have closed already.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer().expect("an answer before the connection closes")
    }

    /// The next answer to `HEAD`.
    pub(crate) fn answer_without_body(&mut self) -> Answer {
        let head = self.head().expect("an answer before the connection closes");
        answer(head)
    }

    /// The next answer; `None` if the connection closes without one.
    pub(crate) fn try_answer(&mut self) -> Option<Answer> {
        let mut answer = answer(self.head()?);
        if answer.status < 200 || matches!(answer.status, 204 | 304) {
            return Some(answer);
        }
        if answer.field("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            self.chunks(&mut answer);
        } else if let Some(length) = answer.field("content-length") {
            let length = length.parse().expect("a length");
            answer.body = self.exactly(length);
        } else {
            answer.body = self.rest();
        }
        Some(answer)
    }

    /// Everything until the connection closes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        core::mem::take(&mut self.buffer)
    }

    /// Whether the gateway closes the connection now, without another byte.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// Exactly so many bytes.
    pub(crate) fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(self.more(), "the body ended after {} bytes", self.buffer.len());
        }
        self.buffer.drain(..length).collect()
    }

    /// Everything up to and with `end`; `None` if the connection closes before anything comes.
    pub(crate) fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Some(self.buffer.drain(..at + end.len()).collect());
            }
            if !self.more() {
                let text = String::from_utf8_lossy(&self.buffer);
                assert!(self.buffer.is_empty(), "broken off: {text:?}");
                return None;
            }
        }
    }

    fn head(&mut self) -> Option<String> {
        let head = self.until(b"\r\n\r\n")?;
        Some(String::from_utf8_lossy(&head[..head.len() - 4]).into_owned())
    }

    fn chunks(&mut self, answer: &mut Answer) {
        loop {
            let line = self.until(b"\r\n").expect("a chunk's size");
            let size = String::from_utf8(line).expect("text");
            let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
            if size == 0 {
                break;
            }
            answer.body.extend(self.exactly(size));
            assert_eq!(self.exactly(2), b"\r\n");
        }
        loop {
            let line = self.until(b"\r\n").expect("the end of the trailers");
            if line == b"\r\n" {
                break;
            }
            answer.trailers.push_str(&String::from_utf8_lossy(&line));
        }
    }

    fn more(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing more came, but {:?}", String::from_utf8_lossy(&self.buffer))
            }
            // A reset, or a close without TLS's goodbye: closed all the same.
            Err(_) => false,
        }
    }
}

fn answer(head: String) -> Answer {
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status line: {head:?}"));
    Answer { status, head, body: Vec::new(), trailers: String::new() }
}

impl Answer {
    /// The value of the only field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let values = self.fields(name);
        assert!(values.len() < 2, "{name} comes twice: {}", self.head);
        values.first().copied()
    }

    /// The values of all fields of this name.
    pub(crate) fn fields(&self, name: &str) -> Vec<&str> {
        fields(&self.head, name)
    }

    pub(crate) fn text(&self) -> &str {
        core::str::from_utf8(&self.body).expect("text")
    }

    /// The last part of the problem's `type`, if the gateway itself answered.
    pub(crate) fn problem(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(problem["type"].as_str()?.strip_prefix("urn:northgate:problem:")?.to_owned())
    }
}

/// The values of all fields called `name` in a head.
pub(super) fn fields<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    lines.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
}
