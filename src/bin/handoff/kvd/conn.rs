//! A client's connection: what has arrived, and what waits to be sent.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::resp::{self, Parser, Request};

/// No more requests are taken from a connection whose answers are not read and have come to this.
const MAX_UNSENT: usize = 1 << 20;
/// Buffers that are empty keep no more than this.
const KEEP: usize = 64 * 1024;

/// A connection. It does what it is told; when to read, close or wait is decided by the server.
pub struct Conn {
    stream: TcpStream,
    input: Vec<u8>,
    consumed: usize,
    parser: Parser,
    output: Output,
    /// When it was accepted.
    pub accepted: Instant,
    /// Nothing has ever arrived.
    pub fresh: bool,
    /// The client will send nothing more.
    pub ended: bool,
    /// To be closed after the last answer; no more requests are taken from it.
    pub closing: bool,
    /// Half-closed after the last answer: what still arrives is thrown away.
    pub lingering: bool,
    /// There may be a whole request that was not taken yet.
    pub unfinished: bool,
    /// Since the drain began, there was a moment when everything that had arrived was read.
    pub caught_up: bool,
}

/// What came of a read.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    /// Bytes.
    Some,
    /// Nothing now.
    Nothing,
    /// The end: the client will send nothing more.
    End,
    /// The connection is gone.
    Lost,
}

impl Conn {
    /// Wraps a non-blocking socket.
    pub fn new(stream: TcpStream) -> Self {
        // Without this, the answers to a pipeline may wait for acknowledgements; it is only slower if it fails.
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            input: Vec::new(),
            consumed: 0,
            parser: Parser::default(),
            output: Output::default(),
            accepted: Instant::now(),
            fresh: true,
            ended: false,
            closing: false,
            lingering: false,
            unfinished: false,
            caught_up: false,
        }
    }

    /// Returns the socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads once into `scratch` and keeps it, or throws it away if the connection lingers.
    pub fn read(&mut self, scratch: &mut [u8]) -> Arrived {
        match self.stream.read(scratch) {
            Ok(0) => Arrived::End,
            Ok(n) => {
                self.fresh = false;
                if !self.lingering {
                    self.input.extend_from_slice(&scratch[..n]);
                }
                Arrived::Some
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock) => Arrived::Nothing,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Arrived::Some,
            Err(_) => Arrived::Lost,
        }
    }

    /// Takes the next whole request.
    pub fn next_request(&mut self) -> Result<Option<Request>, resp::ProtocolError> {
        let request = self.parser.parse(&self.input[self.consumed..])?;
        if request.is_none() {
            self.input.drain(..self.consumed);
            self.consumed = 0;
            if self.input.is_empty() && self.input.capacity() > KEEP {
                self.input = Vec::new();
            }
        }
        Ok(request)
    }

    /// Calls `run` with the arguments of a request that was just taken and the buffer for its answer.
    ///
    /// `run` returns how far the disk must be before the answer may leave.
    pub fn answer<R>(
        &mut self,
        request: &Request,
        run: impl FnOnce(&[&[u8]], &mut Vec<u8>) -> (R, u64),
    ) -> R {
        let bytes = &self.input[self.consumed..];
        let args: Vec<&[u8]> = request.args.iter().map(|range| &bytes[range.clone()]).collect();
        let (result, barrier) = run(&args, &mut self.output.bytes);
        self.output.hold_until(barrier);
        self.consumed += request.len;
        result
    }

    /// Appends an answer that tells nothing of the data.
    pub fn say_error(&mut self, text: &str) {
        resp::Reply::error(&mut self.output.bytes, text);
        self.output.hold_until(0);
    }

    /// Sends what may leave, now that `durable` is on disk. Returns false if the connection is gone.
    pub fn flush(&mut self, durable: u64) -> bool {
        self.output.release(durable);
        while let Some(bytes) = self.output.sendable() {
            match self.stream.write(bytes) {
                Ok(n) => self.output.sent(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Returns whether answers wait for the client to read.
    pub fn is_blocked_by_client(&self) -> bool {
        self.output.sendable().is_some()
    }

    /// Returns what the disk must reach before the next answer may leave.
    pub fn waits_for(&self) -> Option<u64> {
        self.output.held.front().map(|(barrier, _)| *barrier)
    }

    /// Returns whether every answer has been sent.
    pub fn is_flushed(&self) -> bool {
        self.output.bytes.is_empty()
    }

    /// Returns whether so many answers are unsent that no more requests should be taken.
    pub fn is_full(&self) -> bool {
        self.output.bytes.len() - self.output.sent > MAX_UNSENT
    }

    /// Returns whether a part of a request has arrived.
    pub fn is_midway(&self) -> bool {
        self.parser.is_midway()
    }

    /// Returns whether bytes have arrived that were not taken.
    pub fn has_input(&self) -> bool {
        self.input.len() > self.consumed
    }

    /// Returns how many bytes it buffers.
    pub fn buffered(&self) -> usize {
        self.input.len() + self.output.bytes.len()
    }

    /// Forgets requests that were not taken: the connection is as good as closed.
    pub fn forget_input(&mut self) {
        self.input = Vec::new();
        self.consumed = 0;
        self.parser = Parser::default();
        self.unfinished = false;
    }
}

/// Answers in order, some of which must not leave yet.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    sent: usize,
    /// Up to where the bytes may leave.
    released: usize,
    /// What the disk must reach, and up to where the bytes may leave then. Both ascend.
    held: VecDeque<(u64, usize)>,
}

impl Output {
    /// Holds everything appended since the last call until `barrier` is reached, and never before what is in front of it.
    fn hold_until(&mut self, barrier: u64) {
        let end = self.bytes.len();
        match self.held.back_mut() {
            Some((last, until)) if *last >= barrier => *until = end,
            _ => self.held.push_back((barrier, end)),
        }
    }

    fn release(&mut self, durable: u64) {
        while let Some((_, end)) = self.held.pop_front_if(|(barrier, _)| *barrier <= durable) {
            self.released = end;
        }
    }

    fn sendable(&self) -> Option<&[u8]> {
        (self.sent < self.released).then(|| &self.bytes[self.sent..self.released])
    }

    fn sent(&mut self, n: usize) {
        self.sent += n;
        let all = self.sent == self.bytes.len();
        if !all && self.sent < MAX_UNSENT {
            return;
        }
        self.bytes.drain(..self.sent);
        self.released -= self.sent;
        self.held.iter_mut().for_each(|(_, end)| *end -= self.sent);
        self.sent = 0;
        if all && self.bytes.capacity() > KEEP {
            self.bytes = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(answers: &[(&str, u64)]) -> Output {
        let mut output = Output::default();
        for (text, barrier) in answers {
            output.bytes.extend_from_slice(text.as_bytes());
            output.hold_until(*barrier);
        }
        output
    }

    #[test]
    fn an_answer_leaves_when_its_barrier_and_all_before_it_are_reached() {
        let mut output = output(&[("a", 0), ("b", 2), ("c", 0), ("d", 3)]);
        output.release(0);
        assert_eq!(output.sendable(), Some(&b"a"[..]));
        output.release(1);
        assert_eq!(output.sendable(), Some(&b"a"[..]));
        output.sent(1);
        assert_eq!(output.sendable(), None);
        output.release(2);
        assert_eq!(output.sendable(), Some(&b"bc"[..]), "c is behind b, whatever it needs itself");
        output.sent(2);
        output.release(3);
        assert_eq!(output.sendable(), Some(&b"d"[..]));
        output.sent(1);
        assert!(output.bytes.is_empty());
    }

    #[test]
    fn what_was_sent_is_forgotten_though_there_is_always_more() {
        let big = "x".repeat(MAX_UNSENT);
        let mut output = output(&[(&big, 0), ("tail", 1)]);
        output.release(0);
        output.sent(MAX_UNSENT);
        assert_eq!(output.bytes, b"tail");
        output.release(1);
        assert_eq!(output.sendable(), Some(&b"tail"[..]));
    }
}
