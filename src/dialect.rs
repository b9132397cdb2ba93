//! How other tools tell a program which descriptors are its listening sockets, both ways.
//!
//! | dialect | variables |
//! | --- | --- |
//! | `listen-fds` | `LISTEN_FDS`, `LISTEN_FDNAMES`, `LISTEN_PID`, `LISTEN_PIDFDID`: from descriptor 3 on (sd_listen_fds(3)) |
//! | `server-starter` | `SERVER_STARTER_PORT=ADDRESS=NUMBER;...`, `SERVER_STARTER_GENERATION` (start_server(1p)) |
//! | `einhorn` | `EINHORN_FD_COUNT`, `EINHORN_FD_0` and so on |
//! | `s6` | `S6_FD#`, and from 0 on `S6_FD_n` and `S6_FDID_n` (s6-fdholder-getdump) |
//! | `nginx` | `NGINX=NUMBER;NUMBER;` |
//!
//! `listen-fds` is part of the fd table and is in [`crate::fds`]; the others are here.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::fds;
use crate::sys::{inherit, socket};

/// A way of telling a program about its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `LISTEN_FDS` and its company.
    ListenFds,
    /// `SERVER_STARTER_PORT`.
    ServerStarter,
    /// `EINHORN_FD_COUNT`.
    Einhorn,
    /// `S6_FD#`.
    S6,
    /// `NGINX`.
    Nginx,
}

impl Dialect {
    /// All of them with their names.
    pub const NAMED: [(&'static str, Self); 5] = [
        ("listen-fds", Self::ListenFds),
        ("server-starter", Self::ServerStarter),
        ("einhorn", Self::Einhorn),
        ("s6", Self::S6),
        ("nginx", Self::Nginx),
    ];

    /// Returns whether a variable is one of this dialect's.
    fn owns(self, variable: &OsStr) -> bool {
        let Some(variable) = variable.to_str() else { return false };
        match self {
            Self::ListenFds => variable.starts_with("LISTEN_") && fds::LISTEN_VARS.contains(&variable),
            Self::ServerStarter => variable == "SERVER_STARTER_PORT" || variable == GENERATION,
            Self::Einhorn => variable.starts_with("EINHORN_FD_"),
            Self::S6 => ["S6_FD#", "S6_FD_", "S6_FDID_", "S6_FDLIMIT_"]
                .iter()
                .any(|prefix| variable.starts_with(prefix)),
            Self::Nginx => variable == "NGINX",
        }
    }
}

const GENERATION: &str = "SERVER_STARTER_GENERATION";

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMED.iter().find(|(_, dialect)| dialect == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

impl FromStr for Dialect {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::NAMED.iter().find(|(name, _)| *name == text);
        named.map(|(_, dialect)| *dialect).ok_or_else(|| {
            let known = Self::NAMED.map(|(name, _)| name).join(", ");
            Error::Invalid { detail: format!("{text:?} is no dialect: there are {known}") }
        })
    }
}

/// A socket that a dialect names.
struct Named {
    number: RawFd,
    name: String,
    variable: String,
}

/// Takes the sockets that other dialects than `listen-fds` name, and their variables out of the environment. To be called before the process
/// starts threads.
///
/// A name that cannot be one here has its unfit characters replaced by dots: `tcp:127.0.0.1:80` becomes `tcp.127.0.0.1.80`. Where there is no name,
/// the number is one.
///
/// # Errors
///
/// [`Error::Invalid`] for a malformed variable, [`Error::Descriptor`] for a descriptor that is closed.
pub fn take(is_known: impl Fn(RawFd) -> bool) -> Result<Vec<(String, OwnedFd)>> {
    let mut named: Vec<Named> = vec![];
    for found in [server_starter()?, einhorn()?, s6()?, nginx()] {
        for socket in found {
            if !is_known(socket.number) && !named.iter().any(|other| other.number == socket.number) {
                named.push(socket);
            }
        }
    }
    named.into_iter().map(adopt).collect()
}

fn adopt(named: Named) -> Result<(String, OwnedFd)> {
    let Named { number, name, variable } = named;
    match inherit::adopt(number) {
        Ok(fd) => Ok((name, fd)),
        Err(_) => {
            let detail = format!("{variable} names it, but it is closed; {}", fds::WHO_CLOSES);
            Err(Error::Descriptor { name, fd: number, detail })
        }
    }
}

fn take_text(variable: &str) -> Result<Option<String>> {
    let malformed = |_| Error::Invalid { detail: format!("{variable} is not UTF-8") };
    inherit::take_var(variable).map(|text| text.into_string().map_err(malformed)).transpose()
}

fn malformed(variable: &str, text: &str, expected: &str) -> Error {
    Error::Invalid { detail: format!("{variable} is malformed at {text:?}: expected {expected}") }
}

fn number(text: &str) -> Option<RawFd> {
    text.parse().ok().filter(|number| *number >= 0)
}

fn server_starter() -> Result<Vec<Named>> {
    const VARIABLE: &str = "SERVER_STARTER_PORT";
    let Some(text) = take_text(VARIABLE)? else { return Ok(vec![]) };
    inherit::take_var(GENERATION);
    let entry = |entry: &str| {
        let (name, fd) = entry.rsplit_once('=')?;
        Some(Named { number: number(fd)?, name: fds::fit_name(name), variable: VARIABLE.to_owned() })
    };
    let entries = text.split(';').filter(|word| !word.is_empty());
    entries.map(|word| entry(word).ok_or_else(|| malformed(VARIABLE, word, "ADDRESS=NUMBER"))).collect()
}

fn einhorn() -> Result<Vec<Named>> {
    counted("EINHORN_FD_COUNT", "EINHORN_FD_", None)
}

fn s6() -> Result<Vec<Named>> {
    counted("S6_FD#", "S6_FD_", Some("S6_FDID_"))
}

fn counted(count: &str, prefix: &str, names: Option<&str>) -> Result<Vec<Named>> {
    let amount: u16 = match take_text(count)? {
        Some(text) => text.parse().map_err(|_| malformed(count, &text, "a number of descriptors"))?,
        // Some shells drop variables whose names they cannot use, and `S6_FD#` is one.
        None => {
            (0..u16::MAX).take_while(|i| std::env::var_os(format!("{prefix}{i}")).is_some()).count() as u16
        }
    };
    let one = |i| {
        let variable = format!("{prefix}{i}");
        let fd = take_text(&variable)?.unwrap_or_default();
        // How long the holder was to keep it.
        names.and_then(|_| inherit::take_var(&format!("S6_FDLIMIT_{i}")));
        let name = names.map(|names| take_text(&format!("{names}{i}"))).transpose()?.flatten();
        let number = number(&fd).ok_or_else(|| malformed(&variable, &fd, "a descriptor"))?;
        Ok(Named { number, name: fds::fit_name(&name.unwrap_or(fd)), variable })
    };
    (0..amount).map(one).collect()
}

/// Other programs use a variable of this name for a path, and that is none of ours.
fn nginx() -> Vec<Named> {
    const VARIABLE: &str = "NGINX";
    let read = |text: &str| {
        let words = text.strip_suffix([';', ':'])?.split([';', ':']);
        words.map(number).collect::<Option<Vec<RawFd>>>()
    };
    let Some(numbers) = std::env::var(VARIABLE).ok().and_then(|text| read(&text)) else { return vec![] };
    inherit::take_var(VARIABLE);
    let named = |number: RawFd| Named { number, name: number.to_string(), variable: VARIABLE.to_owned() };
    numbers.into_iter().map(named).collect()
}

/// What the next program is to be told about its sockets, and at which numbers they are to be.
///
/// On its way through a chain it is text in [`LAYOUT_VAR`]: a dialect, or `NAME=NUMBER`, separated by spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The dialects; `listen-fds` where there is none.
    pub dialects: Vec<Dialect>,
    /// Sockets at chosen numbers: 0, which is standard input, or 3 and more. `LISTEN_FDS` does not count them.
    pub places: Vec<(String, RawFd)>,
}

/// The variable that hands a [`Layout`] on.
pub const LAYOUT_VAR: &str = "HANDOFF_LAYOUT";

impl Layout {
    /// Takes what an earlier link asked for.
    pub(crate) fn inherit() -> Result<Self> {
        take_text(LAYOUT_VAR)?.map_or_else(|| Ok(Self::default()), |text| text.parse())
    }

    /// Puts a socket at a number.
    ///
    /// # Errors
    ///
    /// The number is that of the standard output or error or is none, or is taken by another socket.
    pub fn place(&mut self, name: &str, number: RawFd) -> Result<()> {
        if number < 0 || matches!(number, 1 | 2) {
            let detail = format!("{name} cannot be at descriptor {number}: use 0, or 3 and more");
            return Err(Error::Invalid { detail });
        }
        if let Some((other, _)) = self.places.iter().find(|(other, at)| other == name || *at == number) {
            let detail = format!("{name} cannot be at descriptor {number}: {other} has a place already");
            return Err(Error::Invalid { detail });
        }
        self.places.push((name.to_owned(), number));
        Ok(())
    }

    /// Returns where a socket is to be, if that was said.
    pub(crate) fn place_of(&self, name: &str) -> Option<RawFd> {
        self.places.iter().find(|(other, _)| other == name).map(|(_, number)| *number)
    }

    /// Returns whether the program is told by `LISTEN_FDS`.
    pub(crate) fn listens(&self) -> bool {
        self.dialects.is_empty() || self.dialects.contains(&Dialect::ListenFds)
    }

    /// Returns whether the variable is replaced or handed on by this.
    pub(crate) fn owns(&self, variable: &OsStr) -> bool {
        variable == LAYOUT_VAR || self.dialects.iter().any(|dialect| dialect.owns(variable))
    }

    /// Returns the variable for the next link, if there is anything to say.
    pub(crate) fn variable(&self) -> Option<(OsString, OsString)> {
        let text = self.to_string();
        (!text.is_empty()).then(|| (LAYOUT_VAR.into(), text.into()))
    }

    /// Returns the variables of the dialects but `listen-fds`, for sockets that will be at these numbers.
    ///
    /// # Errors
    ///
    /// A socket's address cannot be read, or not be written in a dialect.
    pub(crate) fn variables(
        &self,
        sockets: &[(&str, RawFd, BorrowedFd<'_>)],
    ) -> Result<Vec<(OsString, OsString)>> {
        let mut variables: Vec<(String, String)> = vec![];
        let numbers = sockets.iter().map(|(_, number, _)| number.to_string());
        for dialect in &self.dialects {
            match dialect {
                Dialect::ListenFds => {}
                Dialect::Nginx => {
                    variables
                        .push(("NGINX".to_owned(), numbers.clone().map(|number| number + ";").collect()));
                }
                Dialect::Einhorn => {
                    variables.push(("EINHORN_FD_COUNT".to_owned(), sockets.len().to_string()));
                    variables
                        .extend(numbers.clone().enumerate().map(|(i, n)| (format!("EINHORN_FD_{i}"), n)));
                }
                Dialect::S6 => {
                    variables.push(("S6_FD#".to_owned(), sockets.len().to_string()));
                    variables.extend(numbers.clone().enumerate().map(|(i, n)| (format!("S6_FD_{i}"), n)));
                    let names = sockets.iter().map(|(name, ..)| (*name).to_owned());
                    variables.extend(names.enumerate().map(|(i, name)| (format!("S6_FDID_{i}"), name)));
                }
                Dialect::ServerStarter => {
                    variables.push(("SERVER_STARTER_PORT".to_owned(), server_starter_port(sockets)?));
                    // A first generation; its consumers only compare it with one of their own.
                    variables.push((GENERATION.to_owned(), "1".to_owned()));
                }
            }
        }
        Ok(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

fn server_starter_port(sockets: &[(&str, RawFd, BorrowedFd<'_>)]) -> Result<String> {
    let entry = |(name, number, fd): &(&str, RawFd, BorrowedFd<'_>)| {
        let address =
            socket::local_address(*fd).map_err(|e| Error::io(format!("read the address of {name}"), e))?;
        if address.contains([';', '=']) {
            let detail = format!("{address} of {name} cannot be written in SERVER_STARTER_PORT");
            return Err(Error::Invalid { detail });
        }
        Ok(format!("{address}={number}"))
    };
    Ok(sockets.iter().map(entry).collect::<Result<Vec<_>>>()?.join(";"))
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dialects = self.dialects.iter().map(ToString::to_string);
        let places = self.places.iter().map(|(name, number)| format!("{name}={number}"));
        f.write_str(&dialects.chain(places).collect::<Vec<_>>().join(" "))
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut layout = Self::default();
        for word in text.split_ascii_whitespace() {
            let Some((name, place)) = word.rsplit_once('=') else {
                layout.dialects.push(word.parse()?);
                continue;
            };
            let place = number(place).ok_or_else(|| malformed(LAYOUT_VAR, word, "NAME=NUMBER"))?;
            layout.place(name, place)?;
        }
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_layout_is_handed_on_as_it_is() {
        for text in ["", "nginx", "listen-fds s6 http=10", "http=0 admin=77"] {
            let layout: Layout = text.parse().unwrap();
            assert_eq!(layout.to_string(), text);
            assert_eq!(layout.variable().is_some(), !text.is_empty());
        }
        for (text, expected) in [
            ("ngnx", "\"ngnx\" is no dialect: there are listen-fds, server-starter"),
            ("http=x", "HANDOFF_LAYOUT is malformed at \"http=x\""),
            ("http=2", "use 0, or 3 and more"),
            ("http=7 admin=7", "http has a place already"),
            ("http=7 http=8", "http has a place already"),
        ] {
            let said = text.parse::<Layout>().unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn every_dialect_says_the_same_in_its_own_words() {
        let (one, two) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let sockets = [("http", 7, one.as_fd()), ("admin", 9, two.as_fd())];
        let said = |dialect: &str| {
            let layout: Layout = dialect.parse().unwrap();
            let variables = layout.variables(&sockets).unwrap();
            assert!(variables.iter().all(|(name, _)| layout.owns(name)));
            let lines = variables.iter().map(|(n, v)| format!("{}={}", n.display(), v.display()));
            lines.collect::<Vec<_>>().join(" ")
        };
        let (a, b) = (one.local_addr().unwrap(), two.local_addr().unwrap());
        assert_eq!(said("listen-fds"), "");
        assert_eq!(said("nginx"), "NGINX=7;9;");
        assert_eq!(said("einhorn"), "EINHORN_FD_COUNT=2 EINHORN_FD_0=7 EINHORN_FD_1=9");
        assert_eq!(said("s6"), "S6_FD#=2 S6_FD_0=7 S6_FD_1=9 S6_FDID_0=http S6_FDID_1=admin");
        assert_eq!(
            said("server-starter"),
            format!("SERVER_STARTER_PORT={a}=7;{b}=9 SERVER_STARTER_GENERATION=1")
        );
    }
}
