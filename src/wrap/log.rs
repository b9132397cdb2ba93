//! The daemon's output on its way through this process, where a line of it tells that the daemon serves.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ready::{Matcher, Ready};
use crate::error::{Error, Result};

/// How much of a line is looked at.
const LINE_MAX: usize = 64 << 10;

/// What is looked for, and whether it was found.
#[derive(Debug)]
pub(super) struct Log {
    wanted: Vec<Matcher>,
    found: Arc<AtomicBool>,
}

impl Log {
    /// Returns nothing where no line is waited for: then the daemon has this process's own output.
    pub fn new(ready: &[Ready]) -> Option<Self> {
        let wanted: Vec<Matcher> = ready
            .iter()
            .filter_map(|ready| match ready {
                Ready::Log(matcher) => Some(matcher.clone()),
                _ => None,
            })
            .collect();
        (!wanted.is_empty()).then(|| Self { wanted, found: Arc::default() })
    }

    /// Whether a line has matched since the daemon was started last.
    pub fn has_matched(&self) -> bool {
        self.found.load(Ordering::Relaxed)
    }

    /// Returns standard output and error for a daemon, and passes on what comes for as long as anybody writes.
    pub fn attach(self: &Arc<Self>) -> Result<(PipeWriter, PipeWriter)> {
        self.found.store(false, Ordering::Relaxed);
        let (out, to_out) = io::pipe().map_err(|e| Error::io("make a pipe", e))?;
        let (err, to_err) = io::pipe().map_err(|e| Error::io("make a pipe", e))?;
        self.pass_on(out, io::stdout())?;
        self.pass_on(err, io::stderr())?;
        Ok((to_out, to_err))
    }

    fn pass_on(self: &Arc<Self>, mut from: PipeReader, mut to: impl Write + Send + 'static) -> Result<()> {
        let own = Arc::clone(self);
        let thread = std::thread::Builder::new().name("handoff-output".to_owned());
        let started = thread.spawn(move || {
            let (mut buffer, mut line) = (vec![0; 16 << 10], Vec::new());
            loop {
                match from.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => {
                        // First: nothing waits for what is done here. Where nobody reads any more, the daemon is not to be stopped by it.
                        let _ = to.write_all(&buffer[..length]).and_then(|()| to.flush());
                        own.look(&mut line, &buffer[..length]);
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return tracing::error!(%error, "unable to read the daemon's output"),
                }
            }
        });
        started.map(drop).map_err(|e| Error::io("start the thread that passes the daemon's output on", e))
    }

    fn look(&self, line: &mut Vec<u8>, bytes: &[u8]) {
        if self.has_matched() {
            return;
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_MAX.saturating_sub(line.len());
            line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let text = String::from_utf8_lossy(line);
                let text = text.trim_end_matches(['\n', '\r']);
                if self.wanted.iter().all(|matcher| (matcher.matches)(text)) {
                    self.found.store(true, Ordering::Relaxed);
                }
                line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(word: &'static str) -> Log {
        let matches = Arc::new(move |line: &str| line == word);
        let ready = Ready::Log(Matcher { text: word.to_owned(), matches });
        Log::new(&[ready]).expect("a line is waited for")
    }

    #[test]
    fn a_line_is_found_also_where_it_comes_in_pieces() {
        let (log, mut line) = (log("ready"), vec![]);
        log.look(&mut line, b"start\nrea");
        assert!(!log.has_matched());
        log.look(&mut line, b"dy\r\nmore");
        assert!(log.has_matched());
    }

    #[test]
    fn a_line_without_an_end_takes_a_bounded_amount_of_memory() {
        let (log, mut line) = (log("ready"), vec![]);
        (0..100).for_each(|_| log.look(&mut line, &[b'x'; 4096]));
        assert_eq!(line.len(), LINE_MAX);
        log.look(&mut line, b"\nready\n");
        assert!(log.has_matched());
    }
}
