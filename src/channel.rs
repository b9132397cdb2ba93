//! A connection that carries lines with descriptors, and one that carries messages, a JSON object a line.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::proto::wire::{FDS_MAX, LINE_MAX, Message};
use crate::sys::poll::{self, Want};
use crate::sys::unix;

/// How many bytes may wait for a peer that does not read, before it is given up.
const BACKLOG_MAX: usize = 4 << 20;

/// How much of a peer is borne with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long a line may be, with its newline.
    pub line: usize,
    /// How many descriptors may come with one.
    pub fds: usize,
    /// How many bytes may wait for a peer that does not read.
    pub backlog: usize,
}

/// One end of a connection that carries lines. Nothing here blocks.
#[derive(Debug)]
pub(crate) struct Lines {
    socket: OwnedFd,
    limits: Limits,
    input: Vec<u8>,
    /// How many bytes were taken out of `input` so far; positions of descriptors count from the connection's start.
    consumed: u64,
    received: VecDeque<(u64, OwnedFd)>,
    output: VecDeque<Outgoing>,
    waiting_bytes: usize,
    closed: bool,
}

/// One end of a connection that carries messages.
///
/// Nothing here blocks but [`wait`](Self::wait) and [`deliver`](Self::deliver), which take a deadline.
#[derive(Debug)]
pub struct Channel {
    lines: Lines,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// What came over a connection.
#[derive(Debug)]
pub enum Incoming {
    /// A message and its descriptors.
    Message(Message, Vec<OwnedFd>),
    /// A message of a type that this version does not know.
    Unknown(String),
}

impl Lines {
    /// Wraps a connected stream socket.
    pub(crate) fn new(socket: OwnedFd, limits: Limits) -> Self {
        Self {
            socket,
            limits,
            input: vec![],
            consumed: 0,
            received: VecDeque::new(),
            output: VecDeque::new(),
            waiting_bytes: 0,
            closed: false,
        }
    }

    /// Queues a line, which ends in a newline, and sends as much as goes at once.
    ///
    /// # Errors
    ///
    /// The peer is gone, or has let too much wait.
    pub(crate) fn send(&mut self, bytes: Vec<u8>, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let fds = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<Vec<_>>>();
        let fds = fds.map_err(|e| Error::io("copy the descriptors of a message", e))?;
        self.waiting_bytes += bytes.len();
        self.output.push_back(Outgoing { bytes, sent: 0, fds });
        self.flush()?;
        if self.waiting_bytes > self.limits.backlog {
            return Err(Error::Protocol {
                expected: "a peer that reads".to_owned(),
                got: "one that does not".to_owned(),
            });
        }
        Ok(())
    }

    /// Returns whether a whole line has been taken in and not yet been asked for.
    pub(crate) fn has_line(&self) -> bool {
        self.input.contains(&b'\n')
    }

    /// Returns whether nothing is half read or half written here, so that another process can go on with the socket.
    pub(crate) fn is_clean(&self) -> bool {
        self.input.is_empty() && self.received.is_empty() && self.output.is_empty()
    }

    /// Returns whether something is left to send.
    pub(crate) fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Sends as much as goes at once.
    ///
    /// # Errors
    ///
    /// The peer is gone.
    pub(crate) fn flush(&mut self) -> Result<()> {
        while let Some(next) = self.output.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = next.fds.iter().map(AsFd::as_fd).collect();
            match unix::send(self.socket.as_fd(), &next.bytes[next.sent..], &fds) {
                Ok(sent) => {
                    next.sent += sent;
                    self.waiting_bytes -= sent;
                    // They travelled with the first byte.
                    next.fds.clear();
                    if next.sent == next.bytes.len() {
                        self.output.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(Error::io("send to the peer", e)),
            }
        }
        Ok(())
    }

    /// Takes in what has arrived, until there is a whole line: what follows it stays in the socket, so that no more than
    /// two messages' descriptors are ever held here. Returns whether the peer's end is still open.
    ///
    /// # Errors
    ///
    /// Descriptors that did not fit, or a failing system call. End of file and ECONNRESET are
    /// both just the peer's end.
    pub(crate) fn fill(&mut self) -> Result<bool> {
        let mut buffer = [0; 16 << 10];
        let buffer = &mut buffer[..self.limits.line.min(16 << 10)];
        while !self.closed && self.input.len() <= self.limits.line {
            let got = match unix::receive(self.socket.as_fd(), buffer, self.limits.fds) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // What was sent before has been delivered: this is how a close with something unread looks.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => unix::Received::default(),
                got => got.map_err(|e| Error::io("receive from the peer", e))?,
            };
            self.closed = got.bytes == 0;
            self.input.extend_from_slice(&buffer[..got.bytes]);
            let whole = buffer[..got.bytes].contains(&b'\n');
            // With a line's end, some of them may be the next line's.
            if got.truncated || (!whole && self.received.len() + got.fds.len() > self.limits.fds) {
                return Err(self.too_many_fds());
            }
            // The kernel ends a receive with the piece that descriptors came with, and they came with its line's beginning.
            let at = self.consumed + self.input.len() as u64;
            self.received.extend(got.fds.into_iter().map(|fd| (at, fd)));
            if whole || (got.bytes < buffer.len() && self.received.is_empty()) {
                break;
            }
        }
        Ok(!self.closed)
    }

    /// Returns the next whole line that was taken in, with its newline and its descriptors.
    ///
    /// # Errors
    ///
    /// It is too long, or came with too many descriptors.
    pub(crate) fn next(&mut self) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let Some(end) = self.input.iter().position(|byte| *byte == b'\n') else {
            if self.input.len() > self.limits.line {
                let got = format!("{} bytes without a newline", self.input.len());
                let expected = format!("lines of at most {} bytes", self.limits.line);
                return Err(Error::Protocol { expected, got });
            }
            return Ok(None);
        };
        let line: Vec<u8> = self.input.drain(..=end).collect();
        self.consumed += line.len() as u64;
        let mut fds = vec![];
        while self.received.front().is_some_and(|(at, _)| *at <= self.consumed) {
            fds.extend(self.received.pop_front().map(|(_, fd)| fd));
        }
        if fds.len() > self.limits.fds {
            return Err(self.too_many_fds());
        }
        Ok(Some((line, fds)))
    }

    /// Takes in and returns the next line, or none where it has not arrived yet.
    ///
    /// # Errors
    ///
    /// As [`fill`](Self::fill) and [`next`](Self::next); [`Error::PeerLost`] when everything was read and the peer's end is
    /// closed.
    pub(crate) fn receive(&mut self) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        if let Some(line) = self.next()? {
            return Ok(Some(line));
        }
        let open = self.fill()?;
        match self.next()? {
            None if !open => Err(Error::PeerLost { waiting_for: "a message".to_owned() }),
            line => Ok(line),
        }
    }

    /// Sends what is left before the deadline.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush), or the deadline passed.
    pub(crate) fn deliver(&mut self, what: &str, deadline: Instant) -> Result<()> {
        while self.wants_write() {
            if !poll::wait_one(self.as_fd(), Want::Write, Some(deadline))? {
                return Err(Error::TimedOut { waiting_for: format!("the peer to take {what}") });
            }
            self.flush()?;
        }
        Ok(())
    }

    fn too_many_fds(&self) -> Error {
        let expected = format!("at most {} descriptors a message", self.limits.fds);
        Error::Protocol { expected, got: "more".to_owned() }
    }
}

impl AsFd for Lines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    /// Wraps a connected stream socket.
    pub fn new(socket: OwnedFd) -> Self {
        let limits = Limits { line: LINE_MAX, fds: FDS_MAX, backlog: BACKLOG_MAX };
        Self { lines: Lines::new(socket, limits) }
    }

    /// Queues a message, and sends as much as goes at once.
    ///
    /// # Errors
    ///
    /// The peer is gone, or has let too much wait.
    pub fn send(&mut self, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut bytes = serde_json::to_vec(message)
            .map_err(|e| Error::io(format!("write {}", message.name()), io::Error::from(e)))?;
        bytes.push(b'\n');
        self.lines.send(bytes, fds)
    }

    /// Sends a message whole before the deadline.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), or the deadline passed.
    pub fn deliver(&mut self, message: &Message, fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<()> {
        self.send(message, fds)?;
        self.lines.deliver(message.name(), deadline)
    }

    /// Returns whether a whole line has been taken in and not yet been asked for.
    pub fn has_line(&self) -> bool {
        self.lines.has_line()
    }

    /// Returns whether nothing is half read or half written here, so that another process can go on with the socket.
    pub fn is_clean(&self) -> bool {
        self.lines.is_clean()
    }

    /// Returns the socket.
    pub fn into_socket(self) -> OwnedFd {
        self.lines.socket
    }

    /// Returns whether something is left to send.
    pub fn wants_write(&self) -> bool {
        self.lines.wants_write()
    }

    /// Sends as much as goes at once.
    ///
    /// # Errors
    ///
    /// The peer is gone.
    pub fn flush(&mut self) -> Result<()> {
        self.lines.flush()
    }

    /// Returns the next whole message that was taken in.
    ///
    /// # Errors
    ///
    /// What is there is no message.
    pub fn next(&mut self) -> Result<Option<Incoming>> {
        self.lines.next()?.map(|(line, fds)| parse(&line, fds)).transpose()
    }

    /// Takes in and returns the next message, or none where it has not arrived yet.
    ///
    /// # Errors
    ///
    /// As [`fill`](Self::fill) and [`next`](Self::next); [`Error::PeerLost`] when everything was read and the peer's end is
    /// closed.
    pub fn receive(&mut self) -> Result<Option<Incoming>> {
        self.lines.receive()?.map(|(line, fds)| parse(&line, fds)).transpose()
    }

    /// Waits for the next message.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive), or the deadline passed; an unknown message is a protocol error here.
    pub fn wait(&mut self, waiting_for: &str, deadline: Instant) -> Result<(Message, Vec<OwnedFd>)> {
        loop {
            match self.receive() {
                Ok(Some(Incoming::Message(message, fds))) => return Ok((message, fds)),
                Ok(Some(Incoming::Unknown(name))) => {
                    return Err(Error::Protocol { expected: waiting_for.to_owned(), got: name });
                }
                Ok(None) => {}
                Err(Error::PeerLost { .. }) => {
                    return Err(Error::PeerLost { waiting_for: waiting_for.to_owned() });
                }
                Err(e) => return Err(e),
            }
            let want = if self.wants_write() { Want::Both } else { Want::Read };
            if !poll::wait_one(self.as_fd(), want, Some(deadline))? {
                return Err(Error::TimedOut { waiting_for: waiting_for.to_owned() });
            }
            self.flush()?;
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lines.as_fd()
    }
}

#[derive(Deserialize)]
struct Tagged {
    r#type: String,
}

fn parse(line: &[u8], fds: Vec<OwnedFd>) -> Result<Incoming> {
    let error = match serde_json::from_slice::<Message>(line) {
        Ok(message) => return Ok(Incoming::Message(message, fds)),
        Err(e) => e,
    };
    match serde_json::from_slice::<Tagged>(line) {
        Ok(tagged) if !Message::NAMES.contains(&tagged.r#type.as_str()) => {
            Ok(Incoming::Unknown(tagged.r#type))
        }
        Ok(tagged) => {
            Err(Error::Protocol { expected: format!("a {} message", tagged.r#type), got: error.to_string() })
        }
        Err(_) => {
            let shown = String::from_utf8_lossy(&line[..line.len().min(60)]);
            Err(Error::Protocol {
                expected: "a line with one JSON object and a type".to_owned(),
                got: shown.trim_end().to_owned(),
            })
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proto::{Reason, Verdict};
    use std::time::Duration;

    fn pair() -> (Channel, Channel) {
        let (a, b) = unix::pair().unwrap();
        (Channel::new(a), Channel::new(b))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn abort(text: &str) -> Message {
        Message::Abort { reason: text.to_owned(), cause: None }
    }

    #[test]
    fn descriptors_come_with_the_line_that_mentions_them() {
        let (mut a, mut b) = pair();
        let (carried, _other) = unix::pair().unwrap();
        a.send(&Message::Seal {}, &[]).unwrap();
        a.send(&abort("one"), &[carried.as_fd(), carried.as_fd()]).unwrap();
        a.send(&Message::Status {}, &[]).unwrap();
        a.send(&abort("two"), &[carried.as_fd()]).unwrap();
        for (name, count) in [("seal", 0), ("abort", 2), ("status", 0), ("abort", 1)] {
            let (message, fds) = b.wait("a message", soon()).unwrap();
            assert_eq!((message.name(), fds.len()), (name, count));
        }
    }

    #[test]
    fn messages_back_to_back_may_carry_more_descriptors_together_than_one_may() {
        let (mut a, mut b) = pair();
        let (carried, _other) = unix::pair().unwrap();
        // The second is there before the first is read, and may be received together with its end.
        for (length, count) in [(1, FDS_MAX), (1, 47), (100_000, FDS_MAX), (1, FDS_MAX)] {
            a.send(&abort(&"x".repeat(length)), &vec![carried.as_fd(); count]).unwrap();
        }
        assert!(!a.wants_write());
        for count in [FDS_MAX, 47, FDS_MAX, FDS_MAX] {
            assert_eq!(b.wait("a message", soon()).unwrap().1.len(), count);
        }
    }

    #[test]
    fn a_line_with_more_descriptors_than_a_message_may_carry_is_refused() {
        let (carried, _other) = unix::pair().unwrap();
        for (first, second) in [(&b"{"[..], &b"}\n"[..]), (b"{", b"}")] {
            let (a, b) = unix::pair().unwrap();
            let mut b = Channel::new(b);
            unix::send(a.as_fd(), first, &[carried.as_fd(); FDS_MAX]).unwrap();
            unix::send(a.as_fd(), second, &[carried.as_fd()]).unwrap();
            assert!(matches!(b.receive(), Err(Error::Protocol { .. })));
        }
    }

    #[test]
    fn a_line_of_many_pieces_keeps_its_descriptors() {
        let (mut a, mut b) = pair();
        let (carried, _other) = unix::pair().unwrap();
        let long = "x".repeat(900_000);
        let sender = std::thread::spawn(move || {
            a.deliver(&abort("before"), &[], soon()).unwrap();
            a.deliver(&abort(&long), &[carried.as_fd()], soon()).unwrap();
            a.deliver(&Message::Seal {}, &[], soon()).unwrap();
            a
        });
        let counts: Vec<usize> = (0..3).map(|_| b.wait("a message", soon()).unwrap().1.len()).collect();
        assert_eq!(counts, [0, 1, 0]);
        drop(sender.join().unwrap());
        assert!(matches!(b.receive(), Err(Error::PeerLost { .. })));
    }

    #[test]
    fn what_was_sent_before_a_close_is_read_even_after_a_reset() {
        let (mut a, mut b) = pair();
        b.send(&Message::Status {}, &[]).unwrap();
        a.send(&Message::Seal {}, &[]).unwrap();
        drop(a); // With `status` unread, so that the peer gets ECONNRESET.
        assert!(matches!(b.receive(), Ok(Some(Incoming::Message(Message::Seal {}, _)))));
        assert!(matches!(b.receive(), Err(Error::PeerLost { .. })));
    }

    #[test]
    fn a_megabyte_without_a_newline_is_refused() {
        let (a, mut b) = pair();
        let sender = std::thread::spawn(move || {
            let junk = vec![b'{'; 64 << 10];
            while unix::send(a.as_fd(), &junk, &[]).is_ok_and(|sent| sent > 0)
                || poll::wait_one(a.as_fd(), Want::Write, Some(soon())).is_ok_and(|ready| ready)
            {
                if unix::send(a.as_fd(), b"x", &[]).is_err_and(|e| e.kind() != io::ErrorKind::WouldBlock) {
                    break;
                }
            }
        });
        assert!(matches!(b.wait("a message", soon()), Err(Error::Protocol { .. })));
        drop(b);
        sender.join().unwrap();
    }

    #[test]
    fn an_unknown_message_is_told_from_garbage() {
        let (a, b) = unix::pair().unwrap();
        let mut b = Channel::new(b);
        unix::send(
            a.as_fd(),
            b"{\"type\":\"from-the-future\",\"x\":1}\nnonsense\n{\"type\":\"drain\"}\n",
            &[],
        )
        .unwrap();
        assert!(matches!(b.receive(), Ok(Some(Incoming::Unknown(name))) if name == "from-the-future"));
        assert!(matches!(b.receive(), Err(Error::Protocol { .. })));
        assert!(matches!(b.receive(), Err(Error::Protocol { .. })));
    }

    #[test]
    fn every_type_that_can_be_read_is_a_known_name() {
        let refusal = serde_json::from_str::<Message>(r#"{"type":""}"#).unwrap_err().to_string();
        let readable: Vec<&str> = refusal.split('`').skip(1).step_by(2).filter(|n| !n.is_empty()).collect();
        assert!(readable.len() > 30, "{refusal}");
        assert_eq!(readable, Message::NAMES);
    }

    #[test]
    fn a_verdict_of_a_later_version_is_a_verdict() {
        let read = |line: &str| match parse(line.as_bytes(), vec![]) {
            Ok(Incoming::Message(Message::Verdict(report), _)) => report.verdict,
            other => panic!("{line}: {other:?}"),
        };
        let rolled_back = read(
            r#"{"type":"verdict","handoff":"a","outcome":"rolled-back","reason":{"kind":"eclipse","moon":1}}"#,
        );
        let reason = Reason::Other { kind: "eclipse".to_owned(), detail: String::new() };
        assert_eq!(rolled_back, Verdict::RolledBack { reason });
        assert_eq!(read(r#"{"type":"verdict","handoff":"a","outcome":"split","into":2}"#), Verdict::Unknown);
    }

    #[test]
    fn a_known_message_with_a_bad_field_is_no_unknown_message() {
        for line in [
            r#"{"type":"drain","grace_ms":"unknown variant"}"#,
            r#"{"type":"offer","tree":"from-the-future"}"#,
            r#"{"type":"attach","process":{"pid":1,"start_ticks":1,"boot_id":"b"},"tree":"grove","build_id":""}"#,
        ] {
            let parsed = parse(line.as_bytes(), vec![]);
            assert!(matches!(parsed, Err(Error::Protocol { .. })), "{line}: {parsed:?}");
        }
    }
}
