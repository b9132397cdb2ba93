//! The sockets that a start found in `LISTEN_FDS` or the fd table, and those that it was to find.
//!
//! A service manager hands over what its socket units hold and what it keeps in its fd store, and does not ask whether the configuration has
//! changed since: so every descriptor that was not expected is named.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use crate::fds::check_listener;
use crate::sys::socket;

/// Inherited sockets, matched by name.
#[derive(Debug, Default)]
pub struct Matched {
    /// The sockets that were expected, each once, in the order in which they came.
    pub listeners: Vec<(String, OwnedFd)>,
    /// All others. A service manager that keeps them goes on keeping them: see [`Manager::forget`](crate::notify::Manager::forget).
    pub others: Vec<Other>,
}

/// An inherited descriptor that is not used.
#[derive(Debug)]
pub struct Other {
    /// What it is called.
    pub name: String,
    /// The descriptor.
    pub fd: OwnedFd,
    /// Why it is not used.
    pub why: Why,
}

/// Why an inherited descriptor is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// No listener of this name was expected.
    Stranger,
    /// The same socket came twice, as from a socket unit and from the fd store: nothing is lost with this copy.
    Copy,
    /// Another socket of this name came first.
    Duplicate,
    /// It is no socket that listens.
    Unfit(String),
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = socket::local_address(self.fd.as_fd()).unwrap_or_default();
        write!(f, "the inherited descriptor {:?}", self.name)?;
        if !address.is_empty() {
            write!(f, " ({address})")?;
        }
        match &self.why {
            Why::Stranger => f.write_str(" is no listener of the configuration: name it as the listener is named (FileDescriptorName= in a socket unit)"),
            Why::Copy => f.write_str(" came twice"),
            Why::Duplicate => f.write_str(" is another socket than the one of that name that came before it, and is not used"),
            Why::Unfit(why) => write!(f, " is not used: {why}"),
        }
    }
}

/// Matches inherited sockets with the names that are expected. Where one name came twice, the first is used: a socket unit's comes
/// before the fd store's.
pub fn match_names(inherited: Vec<(String, OwnedFd)>, is_expected: impl Fn(&str) -> bool) -> Matched {
    let mut matched = Matched::default();
    for (name, fd) in inherited {
        match reason(&matched.listeners, &name, &fd, &is_expected) {
            None => matched.listeners.push((name, fd)),
            Some(why) => matched.others.push(Other { name, fd, why }),
        }
    }
    matched
}

fn reason(
    taken: &[(String, OwnedFd)],
    name: &str,
    fd: &OwnedFd,
    is_expected: &impl Fn(&str) -> bool,
) -> Option<Why> {
    // Before everything else: a copy of what is used says nothing by its name.
    if taken.iter().any(|(_, other)| is_same(other, fd)) {
        return Some(Why::Copy);
    }
    if !is_expected(name) {
        return Some(Why::Stranger);
    }
    if taken.iter().any(|(other, _)| other == name) {
        return Some(Why::Duplicate);
    }
    check_listener(name, fd.as_fd()).err().map(|e| Why::Unfit(e.to_string()))
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let inode = |fd: &OwnedFd| socket::inode(fd.as_fd()).ok().map(|inode| (inode.dev, inode.ino));
    inode(one).is_some_and(|found| inode(other) == Some(found))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;

    use super::*;

    fn listener() -> OwnedFd {
        TcpListener::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn each_name_gets_its_first_socket_and_everything_else_is_named() {
        let [kv, admin] = [listener(), listener()];
        let numbers: Vec<_> = [&kv, &admin].map(|fd| socket::inode(fd.as_fd()).unwrap()).into();
        let copy = kv.try_clone().unwrap();
        let renamed = admin.try_clone().unwrap();
        let inherited = vec![
            ("kv", kv),
            ("admin", admin),
            ("kv", copy),
            ("kv", listener()),
            ("gone", renamed),
            ("kvd.socket", listener()),
            ("pipe", std::io::pipe().unwrap().0.into()),
        ];
        let inherited = inherited.into_iter().map(|(name, fd)| (name.to_owned(), fd)).collect();
        let matched = match_names(inherited, |name| ["kv", "admin", "pipe", "missing"].contains(&name));
        let names: Vec<_> = matched.listeners.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["kv", "admin"]);
        assert!(matched.listeners.iter().map(|(_, fd)| socket::inode(fd.as_fd()).unwrap()).eq(numbers));
        let others: Vec<_> =
            matched.others.iter().map(|other| (other.name.as_str(), other.why.clone())).collect();
        assert_eq!(
            others[..4],
            [("kv", Why::Copy), ("kv", Why::Duplicate), ("gone", Why::Copy), ("kvd.socket", Why::Stranger)]
        );
        assert!(matches!(&others[4], ("pipe", Why::Unfit(why)) if why.contains("no socket")), "{others:?}");
    }

    #[test]
    fn what_is_not_used_is_named_with_its_address_and_what_to_do() {
        let fd = listener();
        let address = socket::local_address(fd.as_fd()).unwrap();
        let matched = match_names(vec![("kvd.socket".to_owned(), fd)], |name| name == "kv");
        let said = matched.others[0].to_string();
        assert!(
            said.contains(&format!("\"kvd.socket\" ({address})")) && said.contains("FileDescriptorName="),
            "{said}"
        );
    }
}
