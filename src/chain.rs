//! What one link of a chain of commands hands to the next: descriptors, by the fd table, and a few variables.
//!
//! A link [inherits](Chain::inherit) the chain, does its one thing, and [execs](Chain::exec) the next program with the same pid. What is not the
//! chain's passes through untouched: descriptors of others at their numbers, and every variable that is not named here.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use crate::data_dir::{DataDirLock, LockOptions};
use crate::dialect::{self, Layout};
use crate::error::{Error, Result};
use crate::fds::{self, HANDOFF_FDS, LISTEN_START, Role};
use crate::sys::file::{self, Identity};
use crate::sys::spawn::{Image, Program};
use crate::sys::{inherit, socket};

/// The variable that stands in for the option `--control`.
pub const CONTROL_VAR: &str = "HANDOFF_CONTROL";
/// The variable that stands in for the option `--journal`.
pub const JOURNAL_VAR: &str = "HANDOFF_JOURNAL";
/// The variable that stands in for a data directory.
pub const DATA_DIR_VAR: &str = "HANDOFF_DATA_DIR";
/// The variable that holds the id of the handoff in progress.
pub const ID_VAR: &str = "HANDOFF_ID";

/// The number of the standard input.
const STDIN: RawFd = 0;

/// What a link has to hand on.
#[derive(Debug, Default)]
pub struct Chain {
    held: Vec<(Role, OwnedFd)>,
    /// Changes to the environment; none is for what is taken out.
    vars: Vec<(&'static str, Option<OsString>)>,
    env: Vec<(OsString, OsString)>,
    layout: Layout,
}

impl Chain {
    /// Takes what this process inherited: the fd table, each entry verified, or else what `LISTEN_FDS` says. The variables are taken
    /// out of the environment; to be called before the process starts threads.
    ///
    /// # Errors
    ///
    /// [`Error::Descriptor`] for a descriptor that is closed or another one than was passed, [`Error::Invalid`] for a malformed table.
    pub fn inherit() -> Result<Self> {
        let layout = Layout::inherit()?;
        Ok(Self { held: fds::take()?, layout, ..Self::default() })
    }

    /// Takes what was passed in the dialects of other tools too; to be called before the process starts threads.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a malformed variable, [`Error::Descriptor`] for a descriptor that is closed.
    pub fn inherit_dialects(&mut self) -> Result<()> {
        let held: Vec<RawFd> = self.held.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        for (name, fd) in dialect::take(|number| held.contains(&number))? {
            self.add(Role::Listener(name), fd);
        }
        Ok(())
    }

    /// Gives a listening socket another name: one that is known by its name so far, its number or its address.
    ///
    /// # Errors
    ///
    /// There is none; the name cannot be one, or is taken.
    pub fn rename_listener(&mut self, name: &str, before: &str) -> Result<()> {
        fds::check_name(name)?;
        let is_it = |(role, fd): &&mut (Role, OwnedFd)| {
            let Role::Listener(known) = role else { return false };
            known == before
                || before.parse() == Ok(fd.as_raw_fd())
                || socket::local_address(fd.as_fd()).is_ok_and(|address| address == before)
        };
        if name != before && self.listener(name).is_some() {
            return Err(taken(name));
        }
        let known: Vec<&str> = self.listeners().map(|(name, _)| name).collect();
        let detail =
            format!("there is no listener {before} to be called {name}: there are {}", known.join(", "));
        let found = self.held.iter_mut().find(is_it).ok_or(Error::Invalid { detail })?;
        found.0 = Role::Listener(name.to_owned());
        Ok(())
    }

    /// Says how programs that do not know handoff are to be told of their sockets. The links that follow hand it on.
    pub fn set_layout(&mut self, layout: Layout) {
        self.layout = layout;
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
            return Err(taken(name));
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

    /// Takes the lock of a data directory and adds it. A chain that has it already goes on with it: opened anew, the file would be
    /// locked by this very chain.
    ///
    /// # Errors
    ///
    /// As [`LockOptions::acquire`].
    pub fn lock(&mut self, options: &LockOptions, dir: &Path) -> Result<DataDirLock> {
        let lock = match self.own_lock(options, dir)? {
            Some(lock) => lock,
            None => options.acquire(dir)?,
        };
        let copy = lock.try_clone_fd()?;
        let identity = lock_identity(copy.as_fd())?;
        // One description of the file has the lock, and it is this one.
        self.held.retain(|(role, fd)| {
            *role != Role::Lock || lock_identity(fd.as_fd()).is_ok_and(|other| other != identity)
        });
        self.add(Role::Lock, copy);
        Ok(lock)
    }

    fn own_lock(&self, options: &LockOptions, dir: &Path) -> Result<Option<DataDirLock>> {
        let Some(wanted) = options.identity_at(dir)? else { return Ok(None) };
        for (_, fd) in self.held.iter().filter(|(role, _)| *role == Role::Lock) {
            if lock_identity(fd.as_fd())? != wanted {
                continue;
            }
            let copy =
                fd.try_clone().map_err(|e| Error::io("copy the descriptor of an inherited lock", e))?;
            return match options.adopt(copy, dir) {
                // It was let go on the way, and somebody else has it: perhaps it is worth waiting for.
                Err(Error::Locked { .. }) => Ok(None),
                adopted => adopted.map(Some),
            };
        }
        Ok(None)
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

    /// Returns whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
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
        if let Err(e) = self.install(&mut image) {
            return e;
        }
        match self.stdin(&image).map(inherit::replace_stdin).transpose() {
            Ok(_put_back) => image.exec(),
            Err(e) => Error::io("make a socket the standard input", e),
        }
    }

    fn install<'a>(&'a self, image: &mut Image<'a>) -> Result<()> {
        let is_ours = |name: &OsStr| {
            name == HANDOFF_FDS
                || fds::LISTEN_VARS.iter().any(|var| name == *var)
                || self.layout.owns(name)
                || self.vars.iter().any(|(ours, _)| name == *ours)
        };
        image.env.retain(|(name, _)| !is_ours(name));
        for (name, value) in &self.env {
            image.env.retain(|(other, _)| other != name);
            image.env.push((name.clone(), value.clone()));
        }
        let set = |(name, value): &(&str, Option<OsString>)| Some((OsString::from(name), value.clone()?));
        image.env.extend(self.vars.iter().filter_map(set));
        image.env.extend(self.layout.variable());
        // Only listening sockets are anywhere else for the last program, and whoever holds a lease is no daemon.
        let is_daemon = self.get(&Role::Incumbent).is_none() && self.listeners().next().is_some();
        let is_last = is_daemon && !image.program.same_file(Path::new("/proc/self/exe"));
        let numbers = self.numbers(is_last)?;
        let mut entries: Vec<(Role, RawFd, BorrowedFd<'a>)> = self
            .held
            .iter()
            .zip(&numbers.numbers)
            .map(|((role, fd), number)| (role.clone(), *number, fd.as_fd()))
            .collect();
        // What is the program's standard input is none of its table: it would be closed with it.
        entries.retain(|(_, number, _)| *number != STDIN);
        if is_last {
            self.tell(&entries, numbers.listens, image)?;
        }
        if !entries.is_empty() {
            image.env.push((HANDOFF_FDS.into(), fds::render(&entries)?.into()));
        }
        image.fds = entries.into_iter().map(|(_, number, fd)| (number, fd)).collect();
        Ok(())
    }

    /// Tells a program that may not know the fd table of its listening sockets.
    fn tell(
        &self,
        entries: &[(Role, RawFd, BorrowedFd<'_>)],
        listens: bool,
        image: &mut Image<'_>,
    ) -> Result<()> {
        let sockets: Vec<(&str, RawFd, BorrowedFd<'_>)> = entries
            .iter()
            .filter_map(|(role, number, fd)| match role {
                Role::Listener(name) => Some((name.as_str(), *number, *fd)),
                _ => None,
            })
            .collect();
        if listens {
            let is_placed = |name: &str| self.layout.place_of(name).is_some();
            let names: Vec<&str> =
                sockets.iter().map(|(name, ..)| *name).filter(|name| !is_placed(name)).collect();
            image.env.push(("LISTEN_FDS".into(), names.len().to_string().into()));
            image.env.push(("LISTEN_FDNAMES".into(), names.join(":").into()));
            image.listen_pid = true;
        }
        image.env.extend(self.layout.variables(&sockets)?);
        Ok(())
    }

    /// Chooses a number for each descriptor: its own, unless the program is to find it elsewhere.
    fn numbers(&self, is_last: bool) -> Result<Numbers> {
        let wanted: Vec<Wanted> = self.held.iter().map(|(role, fd)| self.wanted(role, fd, is_last)).collect();
        let numbers = arrange(&wanted, inherit::is_passed_on)?;
        if !numbers.listens && wanted.iter().any(|wanted| matches!(wanted, Wanted::Listen(_))) {
            tracing::warn!(
                "a descriptor that is not handoff's is where LISTEN_FDS wants the listening sockets (from {LISTEN_START} on): \
                 only {HANDOFF_FDS} tells of them; close it with {LISTEN_START}<&- if the daemon reads LISTEN_FDS"
            );
        }
        Ok(numbers)
    }

    fn wanted(&self, role: &Role, fd: &OwnedFd, is_last: bool) -> Wanted {
        let own = fd.as_raw_fd();
        match role {
            Role::Listener(name) if is_last => match self.layout.place_of(name) {
                Some(number) => Wanted::At(number),
                None if self.layout.listens() => Wanted::Listen(own),
                None => Wanted::Own(own),
            },
            _ => Wanted::Own(own),
        }
    }

    /// Returns what is to be the program's standard input.
    fn stdin(&self, image: &Image<'_>) -> Option<BorrowedFd<'_>> {
        let (name, _) = self.layout.places.iter().find(|(_, number)| *number == STDIN)?;
        self.listener(name).filter(|_| !image.program.same_file(Path::new("/proc/self/exe")))
    }
}

fn taken(name: &str) -> Error {
    Error::Invalid { detail: format!("there is a listener {name:?} already: give this one another name") }
}

/// Where a descriptor is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// At its own number, unless something else has to be there.
    Own(RawFd),
    /// Among those that `LISTEN_FDS` counts; its own number where they cannot be there.
    Listen(RawFd),
    /// At this number.
    At(RawFd),
}

fn lock_identity(fd: BorrowedFd<'_>) -> Result<Identity> {
    file::identity(fd).map_err(|e| Error::io("look at an inherited lock", e))
}

/// Where descriptors will be.
#[derive(Debug, PartialEq, Eq)]
struct Numbers {
    numbers: Vec<RawFd>,
    /// Whether there are listening sockets from 3 on, in their order.
    listens: bool,
}

/// Returns a number for each descriptor, of which `is_foreign` ones are not ours to use.
fn arrange(wanted: &[Wanted], is_foreign: impl Fn(RawFd) -> bool) -> Result<Numbers> {
    let places: Vec<RawFd> =
        wanted.iter().filter_map(|w| if let Wanted::At(number) = w { Some(*number) } else { None }).collect();
    if let Some(number) = places.iter().find(|number| **number > STDIN && is_foreign(**number)) {
        let detail = format!(
            "descriptor {number} is open and not handoff's: no socket can be placed there; close it with {number}<&-"
        );
        return Err(Error::Invalid { detail });
    }
    let count = wanted.iter().filter(|w| matches!(w, Wanted::Listen(_))).count();
    let end = LISTEN_START + RawFd::try_from(count).unwrap_or(RawFd::MAX - LISTEN_START);
    if count > 0 && places.iter().any(|number| (LISTEN_START..end).contains(number)) {
        let detail = format!(
            "LISTEN_FDS counts {count} sockets from descriptor {LISTEN_START} on: place others at {end} or more, or at 0"
        );
        return Err(Error::Invalid { detail });
    }
    let listens = count > 0 && !(LISTEN_START..end).any(&is_foreign);
    let is_taken =
        |number: RawFd| places.contains(&number) || (listens && (LISTEN_START..end).contains(&number));
    let own: Vec<RawFd> = wanted
        .iter()
        .filter_map(|w| if let Wanted::Own(own) | Wanted::Listen(own) = w { Some(*own) } else { None })
        .collect();
    let (mut next_listener, mut next_other) = (LISTEN_START, if listens { end } else { LISTEN_START });
    let mut place = |wanted: &Wanted| match *wanted {
        Wanted::At(number) => number,
        Wanted::Listen(_) if listens => {
            next_listener += 1;
            next_listener - 1
        }
        Wanted::Own(own) | Wanted::Listen(own) if !is_taken(own) => own,
        Wanted::Own(_) | Wanted::Listen(_) => {
            while own.contains(&next_other) || is_taken(next_other) || is_foreign(next_other) {
                next_other += 1;
            }
            next_other += 1;
            next_other - 1
        }
    };
    Ok(Numbers { numbers: wanted.iter().map(&mut place).collect(), listens })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn arranged(own: &[RawFd], listeners: &[RawFd], is_last: bool, foreign: &[RawFd]) -> Numbers {
        let is_listed = |number: &RawFd| is_last && listeners.contains(number);
        let wanted =
            |number: &RawFd| if is_listed(number) { Wanted::Listen(*number) } else { Wanted::Own(*number) };
        let wanted: Vec<Wanted> = own.iter().map(wanted).collect();
        arrange(&wanted, |number| foreign.contains(&number)).unwrap()
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
    fn a_place_that_was_asked_for_is_cleared_and_nothing_else_is_moved() {
        let (own, listen, at) = (Wanted::Own, Wanted::Listen, Wanted::At);
        let numbers = |wanted: &[Wanted], foreign: &[RawFd]| {
            arrange(wanted, |number| foreign.contains(&number)).map_err(|e| e.to_string())
        };
        let placed = numbers(&[own(5), at(5), at(0), own(3)], &[4]).unwrap();
        assert_eq!(placed, Numbers { numbers: vec![6, 5, 0, 3], listens: false });
        let placed = numbers(&[listen(8), at(10), own(10), listen(9)], &[]).unwrap();
        assert_eq!(placed, Numbers { numbers: vec![3, 10, 5, 4], listens: true });
        // Where LISTEN_FDS cannot be, the sockets still must not be where another one is to be.
        let placed = numbers(&[listen(8), at(8)], &[3]).unwrap();
        assert_eq!(placed, Numbers { numbers: vec![4, 8], listens: false });
        let refused = numbers(&[at(7)], &[7]).unwrap_err();
        assert!(refused.contains("close it with 7<&-"), "{refused}");
        let refused = numbers(&[listen(8), listen(9), at(4)], &[]).unwrap_err();
        assert!(refused.contains("place others at 5 or more"), "{refused}");
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
