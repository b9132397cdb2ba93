//! What one link of a chain of commands hands to the next: descriptors, by the fd table, and a few variables.
//!
//! A link [inherits](Chain::inherit) the chain, does its one thing, and [execs](Chain::exec) the next program with the same pid. What is not the
//! chain's passes through untouched: descriptors of others at their numbers, and every variable that is not named here.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use crate::data_dir::{self, DataDirLock};
use crate::error::{Error, Result};
use crate::fds::{self, HANDOFF_FDS, LISTEN_START, Role};
use crate::sys::spawn::{Image, Program};
use crate::sys::{file, inherit};

/// The variable that stands in for the option `--control`.
pub const CONTROL_VAR: &str = "HANDOFF_CONTROL";
/// The variable that stands in for the option `--journal`.
pub const JOURNAL_VAR: &str = "HANDOFF_JOURNAL";
/// The variable that stands in for a data directory.
pub const DATA_DIR_VAR: &str = "HANDOFF_DATA_DIR";
/// The variable that holds the id of the handoff in progress.
pub const ID_VAR: &str = "HANDOFF_ID";

/// Every variable by which a program is told of descriptors; none reaches a program that it was not made for.
const TABLES: [&str; 5] = [HANDOFF_FDS, "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID"];

/// What a link has to hand on.
#[derive(Debug, Default)]
pub struct Chain {
    held: Vec<(Role, OwnedFd)>,
    /// Changes to the environment; none is for what is taken out.
    vars: Vec<(&'static str, Option<OsString>)>,
    env: Vec<(OsString, OsString)>,
}

impl Chain {
    /// Takes what this process inherited: the fd table, each entry verified, or else what `LISTEN_FDS` says. The variables are taken
    /// out of the environment; to be called before the process starts threads. A lock that came along is also there for the
    /// [`DataDirLock::acquire`] that asks for its directory: opened anew, its file would be locked by this very chain.
    ///
    /// # Errors
    ///
    /// [`Error::Descriptor`] for a descriptor that is closed or another one than was passed, [`Error::Invalid`] for a malformed table;
    /// [`Error::Io`] where there are no more descriptors.
    pub fn inherit() -> Result<Self> {
        let held = fds::take()?;
        for (_, fd) in held.iter().filter(|(role, _)| *role == Role::Lock) {
            let copy =
                fd.try_clone().map_err(|e| Error::io("copy the descriptor of an inherited lock", e))?;
            data_dir::offer_inherited(copy);
        }
        Ok(Self { held, ..Self::default() })
    }

    /// Adds a descriptor.
    pub fn add(&mut self, role: Role, fd: impl Into<OwnedFd>) {
        self.held.push((role, fd.into()));
    }

    /// Adds a listening socket.
    ///
    /// # Errors
    ///
    /// The name cannot be one, or is taken.
    pub fn add_listener(&mut self, name: &str, fd: impl Into<OwnedFd>) -> Result<()> {
        fds::check_name(name)?;
        let role = Role::Listener(name.to_owned());
        if self.get(&role).is_some() {
            let detail = format!("there is a listener {name:?} already: give this one another name");
            return Err(Error::Invalid { detail });
        }
        self.add(role, fd);
        Ok(())
    }

    /// Returns the first listening socket of this name.
    pub fn listener(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.listeners().find(|(other, _)| *other == name).map(|(_, fd)| fd)
    }

    /// Makes sure that what is called a listening socket can take connections or packets.
    ///
    /// # Errors
    ///
    /// [`Error::Descriptor`] names the first that cannot.
    pub fn check_listeners(&self) -> Result<()> {
        self.listeners().try_for_each(|(name, fd)| fds::check_listener(name, fd))
    }

    /// Adds the lock of a data directory, unless the chain has it already.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where there are no more descriptors.
    pub fn add_lock(&mut self, lock: &DataDirLock) -> Result<()> {
        let identify =
            |fd: BorrowedFd<'_>| file::identity(fd).map_err(|e| Error::io("look at an inherited lock", e));
        let wanted = identify(lock.as_fd())?;
        for (_, fd) in self.held.iter().filter(|(role, _)| *role == Role::Lock) {
            if identify(fd.as_fd())? == wanted {
                return Ok(());
            }
        }
        self.add(Role::Lock, lock.try_clone_fd()?);
        Ok(())
    }

    /// Returns the first descriptor of this role.
    pub fn get(&self, role: &Role) -> Option<BorrowedFd<'_>> {
        self.held.iter().find(|(other, _)| other == role).map(|(_, fd)| fd.as_fd())
    }

    /// Returns the path of the file that the first descriptor of this role leads to.
    pub fn path_of(&self, role: &Role) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/self/fd/{}", self.get(role)?.as_raw_fd())).ok()
    }

    /// Takes out the first descriptor of this role: it is not handed on any more.
    pub fn take(&mut self, role: &Role) -> Option<OwnedFd> {
        let at = self.held.iter().position(|(other, _)| other == role)?;
        Some(self.held.remove(at).1)
    }

    /// Keeps only what has one of these roles; the rest is closed.
    pub fn retain(&mut self, keep: impl Fn(&Role) -> bool) {
        self.held.retain(|(role, _)| keep(role));
    }

    /// Returns the listening sockets and their names, in the order in which they were added.
    pub fn listeners(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.held.iter().filter_map(|(role, fd)| match role {
            Role::Listener(name) => Some((name.as_str(), fd.as_fd())),
            _ => None,
        })
    }

    /// Sets a variable for the next program.
    pub fn set_var(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.change_var(name, Some(value.into()));
    }

    /// Sets a variable that somebody asked for, whatever its name.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.retain(|(other, _)| other != name);
        self.env.push((name.into(), value.into()));
    }

    /// Takes a variable out of the next program's environment.
    pub fn unset_var(&mut self, name: &'static str) {
        self.change_var(name, None);
    }

    fn change_var(&mut self, name: &'static str, value: Option<OsString>) {
        self.vars.retain(|(other, _)| *other != name);
        self.vars.push((name, value));
    }

    /// Becomes the next program, with the same pid. If that fails, the process is as it was before.
    ///
    /// A program other than this one, where no lease is handed on, may be the last link: for it, and for its pid, the listening sockets
    /// are also described by `LISTEN_FDS` and its company, from descriptor 3 on. Where somebody else's descriptors are in the way they stay, and only
    /// `HANDOFF_FDS` tells of the listening sockets.
    ///
    /// # Errors
    ///
    /// Returns only then: as [`Image::exec`].
    pub fn exec(&self, program: &Program, args: &[OsString]) -> Error {
        let mut image = Image::new(program);
        image.args = args.to_vec();
        match self.install(&mut image) {
            Ok(()) => image.exec(),
            Err(e) => e,
        }
    }

    fn install<'a>(&'a self, image: &mut Image<'a>) -> Result<()> {
        let is_ours = |name: &OsStr| {
            TABLES.iter().any(|table| name == *table) || self.vars.iter().any(|(ours, _)| name == *ours)
        };
        image.env.retain(|(name, _)| !is_ours(name));
        for (name, value) in &self.env {
            image.env.retain(|(other, _)| other != name);
            image.env.push((name.clone(), value.clone()));
        }
        let set = |(name, value): &(&str, Option<OsString>)| Some((OsString::from(name), value.clone()?));
        image.env.extend(self.vars.iter().filter_map(set));
        // Whoever holds a lease is no daemon.
        let is_daemon = self.get(&Role::Incumbent).is_none();
        let is_last = is_daemon && !image.program.same_file(Path::new("/proc/self/exe"));
        let numbers = self.numbers(is_last);
        if numbers.listens {
            let names: Vec<&str> = self.listeners().map(|(name, _)| name).collect();
            image.env.push(("LISTEN_FDS".into(), names.len().to_string().into()));
            image.env.push(("LISTEN_FDNAMES".into(), names.join(":").into()));
            image.listen_pid = true;
        }
        let entries: Vec<(Role, RawFd, BorrowedFd<'a>)> = self
            .held
            .iter()
            .zip(&numbers.numbers)
            .map(|((role, fd), number)| (role.clone(), *number, fd.as_fd()))
            .collect();
        if !entries.is_empty() {
            image.env.push((HANDOFF_FDS.into(), fds::render(&entries)?.into()));
        }
        image.fds = entries.into_iter().map(|(_, number, fd)| (number, fd)).collect();
        Ok(())
    }

    /// Chooses a number for each descriptor: its own, unless the listening sockets have to be where `LISTEN_FDS` wants them.
    fn numbers(&self, is_last: bool) -> Numbers {
        let is_listener: Vec<bool> =
            self.held.iter().map(|(role, _)| matches!(role, Role::Listener(_))).collect();
        let own: Vec<RawFd> = self.held.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        let numbers = arrange(&own, &is_listener, is_last, inherit::is_passed_on);
        if is_last && !numbers.listens && is_listener.contains(&true) {
            tracing::warn!(
                "a descriptor that is not handoff's is where LISTEN_FDS wants the listening sockets (from {LISTEN_START} on): \
                 only {HANDOFF_FDS} tells of them; close it with {LISTEN_START}<&- if the daemon reads LISTEN_FDS"
            );
        }
        numbers
    }
}

/// Where descriptors will be.
#[derive(Debug, PartialEq, Eq)]
struct Numbers {
    numbers: Vec<RawFd>,
    /// Whether the listening sockets are from 3 on, in their order.
    listens: bool,
}

/// Returns a number for each descriptor, of which `is_foreign` ones are not ours to use.
fn arrange(
    own: &[RawFd],
    is_listener: &[bool],
    is_last: bool,
    is_foreign: impl Fn(RawFd) -> bool,
) -> Numbers {
    let count = is_listener.iter().filter(|listener| **listener).count();
    let end = LISTEN_START + RawFd::try_from(count).unwrap_or(RawFd::MAX - LISTEN_START);
    let listens = is_last && count > 0 && !(LISTEN_START..end).any(&is_foreign);
    if !listens {
        return Numbers { numbers: own.to_vec(), listens };
    }
    let mut next_listener = LISTEN_START;
    let mut next_other = end;
    let mut place = |(own_number, is_listener): (&RawFd, &bool)| {
        if *is_listener {
            next_listener += 1;
            return next_listener - 1;
        }
        if *own_number >= end {
            return *own_number;
        }
        while own.contains(&next_other) || is_foreign(next_other) {
            next_other += 1;
        }
        next_other += 1;
        next_other - 1
    };
    let numbers = own.iter().zip(is_listener).map(&mut place).collect();
    Numbers { numbers, listens }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn arranged(own: &[RawFd], listeners: &[RawFd], is_last: bool, foreign: &[RawFd]) -> Numbers {
        let is_listener: Vec<bool> = own.iter().map(|number| listeners.contains(number)).collect();
        arrange(own, &is_listener, is_last, |number| foreign.contains(&number))
    }

    #[test]
    fn between_links_every_descriptor_keeps_its_number() {
        let numbers = arranged(&[7, 4, 9], &[7, 9], false, &[3]);
        assert_eq!(numbers, Numbers { numbers: vec![7, 4, 9], listens: false });
    }

    #[test]
    fn the_last_program_finds_its_listeners_from_three_on_and_the_others_out_of_their_way() {
        let numbers = arranged(&[3, 8, 5, 6], &[8, 6], true, &[7]);
        // The lease was at 3 and the lock at 5; 5 is free behind the listeners, but is taken by the lock.
        assert_eq!(numbers, Numbers { numbers: vec![9, 3, 5, 4], listens: true });
    }

    #[test]
    fn somebody_elses_descriptor_is_never_replaced() {
        let numbers = arranged(&[8, 6], &[8, 6], true, &[4]);
        assert_eq!(numbers, Numbers { numbers: vec![8, 6], listens: false });
    }

    #[test]
    fn two_listeners_of_one_name_are_refused() {
        let mut chain = Chain::default();
        let null = || std::fs::File::open("/dev/null").unwrap();
        chain.add_listener("http", null()).unwrap();
        assert!(chain.add_listener("http", null()).unwrap_err().to_string().contains("another name"));
        assert!(chain.add_listener("a b", null()).is_err());
        assert_eq!(chain.listeners().count(), 1);
        assert!(chain.take(&Role::Listener("http".to_owned())).is_some());
        assert_eq!(chain.listeners().count(), 0);
    }
}
