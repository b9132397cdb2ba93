//! Between the service manager and the daemon: the one is told of the other, and neither talks to the other itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Say, Settings};
use crate::activation::{self, Why};
use crate::notify::{Manager, Private};

/// When what the manager has no room for is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// The service manager, and the socket on which the daemon talks as if to one.
#[derive(Debug)]
pub(super) struct Managed {
    manager: Manager,
    /// None where it cannot be made: the daemon then has nobody to talk to.
    private: Option<Private>,
    /// Whether the daemon that starts has said that it is ready.
    said_ready: Arc<AtomicBool>,
    /// The sockets that the manager keeps.
    stored: Vec<String>,
    /// When the watchdog is to be fed next.
    feed_at: Option<Instant>,
    is_behind: bool,
    is_stopping: bool,
}

impl Managed {
    /// Begins, or goes on with the socket of the program that this process was before.
    pub fn new(manager: Manager, private: Option<OwnedFd>) -> Self {
        let private = private.map_or_else(Private::new, Private::from_fd);
        if let Err(e) = &private {
            tracing::warn!(error = %e, "the daemon gets no NOTIFY_SOCKET");
        }
        let feed_at = manager.watchdog_interval().map(|_| Instant::now());
        Self {
            manager,
            private: private.ok(),
            said_ready: Arc::default(),
            stored: vec![],
            feed_at,
            is_behind: false,
            is_stopping: false,
        }
    }

    pub fn manager(&self) -> &Manager {
        &self.manager
    }

    /// Returns the daemon's socket, for the program that this process becomes.
    pub fn private(&self) -> Option<BorrowedFd<'_>> {
        self.private.as_ref().map(AsFd::as_fd)
    }

    /// Returns the settings as a daemon is started with them: its NOTIFY_SOCKET is ours, unless the configuration gives it another.
    pub fn for_daemon(&self, settings: &Settings) -> Settings {
        let mut settings = settings.clone();
        if let Some((name, address)) = self.private.as_ref().map(Private::var)
            && let (Ok(name), Ok(address)) = (name.into_string(), address.into_string())
            && !settings.env.iter().any(|(other, _)| *other == name)
        {
            settings.env.push((name, address));
        }
        settings
    }

    /// Says that somebody serves, and what this process holds. It was said that it stops: that is the last word.
    pub fn ready(&mut self, listeners: &[(String, OwnedFd)], status: &str) {
        self.store(listeners);
        if !self.is_stopping {
            self.manager.ready(status);
        }
    }

    /// Says that something is being replaced, and how things stood before.
    pub fn reloading(&self, status: &str) {
        if !self.is_stopping {
            self.manager.reloading(status);
        }
    }

    /// Says that this is the end.
    pub fn stopping(&mut self, status: &str) {
        self.is_stopping = true;
        self.manager.stopping(status);
    }

    /// Begins to wait for the word of a daemon that is started.
    pub fn expect_ready(&mut self) {
        self.said_ready = Arc::default();
    }

    /// Returns whether the daemon has said that it is ready, for whoever waits for that.
    pub fn said_ready(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.said_ready)
    }

    /// Takes what was said on the daemon's socket, and passes on what is of interest to the manager. Others are not heard.
    pub fn hear(&mut self, daemon: u32) {
        let Some(private) = &self.private else { return };
        loop {
            let notice = match private.receive() {
                Ok(Some(notice)) => notice,
                Ok(None) => return,
                Err(e) => {
                    tracing::debug!(error = %e, "the daemon is not heard");
                    return;
                }
            };
            if !notice.is_from(daemon) {
                tracing::debug!(pid = notice.pid, "a notification by somebody who is not the daemon");
                continue;
            }
            if notice.ready {
                self.said_ready.store(true, Ordering::Relaxed);
            }
            if let Some(status) = &notice.status {
                self.manager.status(&format!("pid {daemon}: {status}"));
            }
            if let Some(by) = notice.extend_timeout {
                self.manager.extend_timeout(by);
            }
        }
    }

    /// Gives the manager copies of the sockets that it does not have yet, and takes back those that are not held any more.
    fn store(&mut self, listeners: &[(String, OwnedFd)]) {
        let is_held = |name: &String| listeners.iter().any(|(other, _)| other == name);
        for gone in self.stored.extract_if(.., |name| !is_held(name)) {
            self.manager.forget(&gone);
        }
        let fresh: Vec<_> = listeners.iter().filter(|(name, _)| !self.stored.contains(name)).collect();
        if let Err(e) = self.manager.store(fresh.iter().map(|(name, fd)| (name.as_str(), fd.as_fd()))) {
            return tracing::warn!(error = %e, "the service manager does not keep the sockets");
        }
        let fresh: Vec<String> = fresh.into_iter().map(|(name, _)| name.clone()).collect();
        self.stored.extend(fresh);
    }

    /// Does what is due: the watchdog, and what there was no room for.
    pub fn tick(&mut self) {
        if let (Some(at), Some(interval)) = (self.feed_at, self.manager.watchdog_interval())
            && at <= Instant::now()
        {
            self.manager.watchdog();
            self.feed_at = Instant::now().checked_add(interval);
        }
        self.is_behind = !self.manager.flush();
    }

    /// Returns when something is due.
    pub fn wake_at(&self) -> Option<Instant> {
        let again = self.is_behind.then(|| Instant::now() + AGAIN);
        self.feed_at.into_iter().chain(again).min()
    }
}

/// Returns those of the inherited sockets that are configured, says what becomes of the others, and has the manager forget those.
///
/// Where no socket is configured, all that come are the daemon's.
pub(super) fn inherit(
    settings: &Settings,
    manager: &Manager,
    inherited: Vec<(String, OwnedFd)>,
    say: Say,
) -> Vec<(String, OwnedFd)> {
    let specs = || settings.listeners.iter().flat_map(|listen| &listen.sockets);
    let is_expected = |name: &str| specs().next().is_none() || specs().any(|spec| spec.name == name);
    let matched = activation::match_names(inherited, is_expected);
    for other in &matched.others {
        if other.why != Why::Copy {
            say("warning", &other.to_string());
        }
        let is_used = matched.listeners.iter().any(|(name, _)| *name == other.name);
        if !is_used {
            manager.forget(&other.name);
        }
    }
    matched.listeners
}
