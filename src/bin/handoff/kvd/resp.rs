//! RESP2, the protocol that Redis clients speak: a resumable parser of requests and an encoder of replies.
//!
//! The parser never looks at a byte twice, however slowly a request arrives, and every length is bounded
//! before anything is allocated for it.

use std::ops::Range;

/// The longest line: an inline request, or the length of an argument.
pub const MAX_LINE: usize = 64 * 1024;
/// The most arguments of one request.
pub const MAX_ARGS: usize = 64 * 1024;
/// The longest argument.
pub const MAX_BULK: usize = 16 * 1024 * 1024;
/// The longest request; a connection never buffers much more.
pub const MAX_REQUEST: usize = 32 * 1024 * 1024;

/// What is wrong with a request; the connection is closed after the reply that says it.
pub type ProtocolError = String;

/// A request that has begun to arrive. Offsets are relative to its first byte.
#[derive(Debug, Default)]
pub struct Parser {
    stage: Stage,
    scanned: usize,
    /// How much of an unfinished line has no end in it.
    searched: usize,
    args: Vec<Range<usize>>,
}

#[derive(Debug, Default, Clone, Copy)]
enum Stage {
    /// At the first byte.
    #[default]
    Start,
    /// In an inline request, or at the line that says how many arguments follow.
    Line,
    /// At the line that says how long an argument is; so many are missing.
    Length(usize),
    /// In an argument of this length; so many are missing, with this one.
    Bulk(usize, usize),
}

/// A request that is complete.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Where the arguments are, in the bytes that were parsed.
    pub args: Vec<Range<usize>>,
    /// How many bytes the request took.
    pub len: usize,
}

impl Parser {
    /// Goes on with `bytes`, which begin with the first byte of the request and contain all that was there before.
    ///
    /// Returns a request when it is complete, and is then ready for the next one.
    ///
    /// # Errors
    ///
    /// The text of an error reply when this can never be a request.
    pub fn parse(&mut self, bytes: &[u8]) -> Result<Option<Request>, ProtocolError> {
        loop {
            let done = match self.stage {
                Stage::Start if bytes.is_empty() => return Ok(None),
                Stage::Start => {
                    self.stage = Stage::Line;
                    false
                }
                Stage::Line => {
                    let Some(line) = self.line(bytes)? else { return Ok(None) };
                    self.first_line(&bytes[line.clone()], line.start)?
                }
                Stage::Length(missing) => {
                    let Some(line) = self.line(bytes)? else { return Ok(None) };
                    let length = bulk_length(&bytes[line])?;
                    self.stage = Stage::Bulk(length, missing);
                    false
                }
                Stage::Bulk(length, missing) => {
                    let start = self.scanned;
                    if bytes.len() < start + length + 2 {
                        return too_long(start + length).map_or(Ok(None), Err);
                    }
                    self.args.push(start..start + length);
                    self.scanned = start + length + 2;
                    self.stage = Stage::Length(missing - 1);
                    missing == 1
                }
            };
            if done {
                let parsed = std::mem::take(self);
                return Ok(Some(Request { args: parsed.args, len: parsed.scanned }));
            }
        }
    }

    /// Returns whether a part of a request has arrived.
    pub fn is_midway(&self) -> bool {
        !matches!(self.stage, Stage::Start)
    }

    /// Takes the next line, without its end, if all of it is there.
    fn line(&mut self, bytes: &[u8]) -> Result<Option<Range<usize>>, ProtocolError> {
        let start = self.scanned;
        let window = &bytes[start..bytes.len().min(start + MAX_LINE)];
        let Some(end) = window[self.searched..].iter().position(|b| *b == b'\n') else {
            self.searched = window.len();
            return if window.len() == MAX_LINE { Err(self.line_too_long()) } else { Ok(None) };
        };
        let end = std::mem::take(&mut self.searched) + end;
        self.scanned = start + end + 1;
        let end = if end > 0 && window[end - 1] == b'\r' { end - 1 } else { end };
        Ok(Some(start..start + end))
    }

    fn line_too_long(&self) -> ProtocolError {
        match self.stage {
            Stage::Length(_) => "Protocol error: too big bulk count string".into(),
            _ => "Protocol error: too big inline request".into(),
        }
    }

    /// Returns whether the request is complete with its first line.
    fn first_line(&mut self, line: &[u8], start: usize) -> Result<bool, ProtocolError> {
        let Some(count) = line.strip_prefix(b"*") else {
            self.args = inline_args(line, start);
            return Ok(true);
        };
        let invalid = || "Protocol error: invalid multibulk length".to_owned();
        let count = integer(count).ok_or_else(invalid)?;
        if count > MAX_ARGS as i64 {
            return Err(invalid());
        }
        let count = usize::try_from(count).unwrap_or(0);
        self.stage = Stage::Length(count);
        Ok(count == 0)
    }
}

fn too_long(end: usize) -> Option<ProtocolError> {
    (end > MAX_REQUEST).then(|| "Protocol error: request is too long".into())
}

fn bulk_length(line: &[u8]) -> Result<usize, ProtocolError> {
    let Some(digits) = line.strip_prefix(b"$") else {
        let got = line.first().map_or('\n', |b| char::from(*b));
        return Err(format!("Protocol error: expected '$', got '{}'", got.escape_default()));
    };
    integer(digits)
        .and_then(|length| usize::try_from(length).ok())
        .filter(|length| *length <= MAX_BULK)
        .ok_or_else(|| "Protocol error: invalid bulk length".into())
}

/// Splits at white space. Quotes are not special: who needs them can speak the protocol.
fn inline_args(line: &[u8], start: usize) -> Vec<Range<usize>> {
    let mut args = Vec::new();
    let mut begin = None;
    for (i, byte) in line.iter().chain(b" ").enumerate() {
        match (byte.is_ascii_whitespace(), begin) {
            (false, None) => begin = Some(i),
            (true, Some(first)) => {
                args.push(start + first..start + i);
                begin = None;
            }
            (false, Some(_)) | (true, None) => {}
        }
    }
    args
}

/// Parses a decimal as Redis does: a 64-bit integer in its one canonical form.
pub fn integer(bytes: &[u8]) -> Option<i64> {
    let value: i64 = std::str::from_utf8(bytes).ok()?.parse().ok()?;
    (value.to_string().as_bytes() == bytes).then_some(value)
}

/// Replies, appended to a buffer.
pub trait Reply {
    /// Appends a simple string.
    fn simple(&mut self, text: &str);
    /// Appends an error; `text` begins with its code, such as `ERR`. Control characters are replaced.
    fn error(&mut self, text: &str);
    /// Appends an integer.
    fn integer(&mut self, value: i64);
    /// Appends a string, or the null string.
    fn bulk(&mut self, bytes: Option<&[u8]>);
    /// Appends the beginning of an array of so many replies.
    fn array(&mut self, len: usize);
}

impl Reply for Vec<u8> {
    fn simple(&mut self, text: &str) {
        line(self, b'+', text.as_bytes());
    }

    fn error(&mut self, text: &str) {
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        line(self, b'-', text.as_bytes());
    }

    fn integer(&mut self, value: i64) {
        line(self, b':', value.to_string().as_bytes());
    }

    fn bulk(&mut self, bytes: Option<&[u8]>) {
        let Some(bytes) = bytes else { return line(self, b'$', b"-1") };
        line(self, b'$', bytes.len().to_string().as_bytes());
        self.extend_from_slice(bytes);
        self.extend_from_slice(b"\r\n");
    }

    fn array(&mut self, len: usize) {
        line(self, b'*', len.to_string().as_bytes());
    }
}

fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    out.push(kind);
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Feeds `bytes` in the given pieces and returns the requests, as the server does it.
    fn parse_pieces<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Vec<Vec<u8>>>, ProtocolError> {
        let (mut parser, mut input, mut requests) = (Parser::default(), Vec::new(), Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            while let Some(request) = parser.parse(&input)? {
                requests.push(request.args.iter().map(|arg| input[arg.clone()].to_vec()).collect());
                input.drain(..request.len);
            }
        }
        Ok(requests)
    }

    fn parse(bytes: &[u8]) -> Result<Vec<Vec<Vec<u8>>>, ProtocolError> {
        parse_pieces(std::iter::once(bytes))
    }

    const PIPELINE: &[u8] =
        b"PING\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n*0\r\n\r\n get  k \n*1\r\n$0\r\n\r\n";

    fn pipeline_requests() -> Vec<Vec<Vec<u8>>> {
        let requests: [&[&[u8]]; 6] =
            [&[b"PING"], &[b"SET", b"k", b"a\r\nb"], &[], &[], &[b"get", b"k"], &[b""]];
        requests.iter().map(|args| args.iter().map(|a| a.to_vec()).collect()).collect()
    }

    #[test]
    fn a_pipeline_is_parsed_however_it_is_split() {
        for a in 0..=PIPELINE.len() {
            for b in a..=PIPELINE.len() {
                let pieces = [&PIPELINE[..a], &PIPELINE[a..b], &PIPELINE[b..]];
                assert_eq!(
                    parse_pieces(pieces.into_iter()).unwrap(),
                    pipeline_requests(),
                    "split at {a} and {b}"
                );
            }
        }
        assert_eq!(parse_pieces(PIPELINE.chunks(1)).unwrap(), pipeline_requests());
    }

    #[test]
    fn a_part_of_a_request_is_midway_and_nothing_is_not() {
        let mut parser = Parser::default();
        assert!(!parser.is_midway());
        assert_eq!(parser.parse(b"*1\r\n$4\r\nPI"), Ok(None));
        assert!(parser.is_midway());
        assert!(parser.parse(b"*1\r\n$4\r\nPING\r\n").unwrap().is_some());
        assert!(!parser.is_midway());
    }

    #[test]
    fn lengths_that_can_never_be_are_refused_before_they_arrive() {
        for bytes in [
            &b"*99999999\r\n"[..],
            b"*x\r\n",
            b"*1\r\n$99999999999\r\n",
            b"*1\r\n$-1\r\n",
            b"*1\r\n$+4\r\n",
            b"*1\r\n$18446744073709551616\r\n",
            b"*1\r\nPING\r\n",
            b"*1\r\n\r\n",
            b"*9223372036854775808\r\n",
        ] {
            let error = parse(bytes).unwrap_err();
            assert!(error.starts_with("Protocol error: "), "{error}");
        }
        assert_eq!(parse(b"*-5\r\n").unwrap(), [Vec::<Vec<u8>>::new()]);
    }

    #[test]
    fn a_line_without_an_end_is_refused_at_its_limit() {
        assert!(parse(&vec![b'x'; MAX_LINE - 1]).unwrap().is_empty());
        assert_eq!(parse(&vec![b'x'; MAX_LINE]).unwrap_err(), "Protocol error: too big inline request");
        let mut bulk = b"*1\r\n".to_vec();
        bulk.resize(bulk.len() + MAX_LINE, b'9');
        assert_eq!(parse(&bulk).unwrap_err(), "Protocol error: too big bulk count string");
    }

    #[test]
    fn a_request_is_refused_when_its_arguments_add_up_to_too_much() {
        let mut bytes = b"*4\r\n".to_vec();
        for _ in 0..2 {
            bytes.extend_from_slice(format!("${MAX_BULK}\r\n").as_bytes());
            bytes.resize(bytes.len() + MAX_BULK, b'v');
            bytes.extend_from_slice(b"\r\n");
        }
        assert!(parse(&bytes).unwrap().is_empty());
        bytes.extend_from_slice(format!("${MAX_BULK}\r\n").as_bytes());
        assert_eq!(parse(&bytes).unwrap_err(), "Protocol error: request is too long");
    }

    #[test]
    fn garbage_is_an_error_or_an_inline_request_and_never_a_panic() {
        let mut state = 0x9e37_79b9_u32;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..24)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    b"*$\r\n0123-x \xff"[(state >> 16) as usize % 12]
                })
                .collect();
            let whole = parse(&bytes);
            assert_eq!(parse_pieces(bytes.chunks(1)), whole, "{bytes:?}");
        }
    }

    #[test]
    fn integers_have_one_form() {
        for bad in [&b""[..], b"+1", b"01", b"-0", b" 1", b"1 ", b"9223372036854775808", b"0x1"] {
            assert_eq!(integer(bad), None);
        }
        assert_eq!(integer(b"-9223372036854775808"), Some(i64::MIN));
    }

    #[test]
    fn replies_are_encoded_and_an_error_stays_on_its_line() {
        let mut out = Vec::new();
        out.array(2);
        out.bulk(Some(b"a"));
        out.bulk(None);
        out.integer(-7);
        out.simple("OK");
        out.error("ERR bad\r\n+OK");
        assert_eq!(out, b"*2\r\n$1\r\na\r\n$-1\r\n:-7\r\n+OK\r\n-ERR bad  +OK\r\n");
    }
}
