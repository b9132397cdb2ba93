//! Listening sockets as they are written on a command line: `NAME=ADDRESS[,OPTION[=VALUE]]...`.
//!
//! | address | is |
//! | --- | --- |
//! | `0.0.0.0:8080`, `127.0.0.1:80`, `[::1]:80`, `[fe80::1%eth0]:80` | TCP at this address; `[::]:8080` takes IPv4 too |
//! | `8080`, `:8080`, `*:8080` | TCP at every address of both families |
//! | `localhost:8080` | TCP at 127.0.0.1, or at ::1 with `tcp6:` |
//! | `127.0.0.1:8000-8010` | a socket for each port, called `NAME.8000` and so on |
//! | `tcp4:`, `tcp6:`, `tcp:` before it | of this family only; of both |
//! | `udp4:`, `udp6:`, `udp:` before it | UDP |
//! | `unix:/run/x`, `/run/x` | a Unix stream socket |
//! | `seqpacket:/run/x`, `datagram:/run/x` | Unix sockets of these kinds |
//! | `unix:@name` | a Unix socket without a path ("abstract"); of the other kinds too |
//!
//! A comma in a path is written `\,`. Host names are not looked up: what they mean may change between two starts, and a static program cannot always
//! look them up.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::fds;
use crate::suggest::{distance, nearest};
use crate::sys::bind::{self, Access, Occupied, Options};
use crate::sys::socket::Transport;
use crate::sys::unix::PATH_MAX;
use crate::sys::users;

/// How many ports a range may have.
const RANGE_MAX: usize = 1024;

/// What stands before an address, and what it means.
const SCHEMES: [(&str, Scheme); 9] = [
    ("tcp", Scheme::Inet(Transport::Stream, None)),
    ("tcp4", Scheme::Inet(Transport::Stream, Some(Version::V4))),
    ("tcp6", Scheme::Inet(Transport::Stream, Some(Version::V6))),
    ("udp", Scheme::Inet(Transport::Datagram, None)),
    ("udp4", Scheme::Inet(Transport::Datagram, Some(Version::V4))),
    ("udp6", Scheme::Inet(Transport::Datagram, Some(Version::V6))),
    ("unix", Scheme::Unix(Transport::Stream)),
    ("seqpacket", Scheme::Unix(Transport::SeqPacket)),
    ("datagram", Scheme::Unix(Transport::Datagram)),
];

/// The options that there are.
const OPTIONS: [&str; 12] = [
    "backlog",
    "freebind",
    "group",
    "keepalive",
    "mode",
    "nodelay",
    "owner",
    "rcvbuf",
    "reuseaddr",
    "sndbuf",
    "transparent",
    "v6only",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Inet(Transport, Option<Version>),
    Unix(Transport),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

/// What to bind, as [the module](self) says that it is written. A range of ports is several sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The sockets.
    pub sockets: Vec<Spec>,
}

/// One socket to bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What it is called.
    pub name: String,
    /// Where it is bound.
    pub address: Address,
    /// What is set on it.
    pub options: Options,
    /// For a path: the permission bits.
    pub mode: Option<u32>,
    /// For a path: the user that owns it, by name or number.
    pub owner: Option<String>,
    /// For a path: the group that owns it, by name or number.
    pub group: Option<String>,
}

/// Where a socket is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// At an address and a port.
    Inet {
        /// A stream for TCP, a datagram for UDP.
        transport: Transport,
        /// The address.
        address: SocketAddr,
        /// Whether IPv4's any-address takes its place where the machine has no IPv6.
        falls_back: bool,
    },
    /// At a path.
    Path {
        /// Which kind of Unix socket.
        transport: Transport,
        /// The path.
        path: PathBuf,
    },
    /// By a name without a path.
    Abstract {
        /// Which kind of Unix socket.
        transport: Transport,
        /// The name, any bytes.
        name: OsString,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet { transport: Transport::Datagram, address, .. } => write!(f, "udp:{address}"),
            Self::Inet { address, .. } => write!(f, "{address}"),
            Self::Path { transport, path } => write!(f, "{}:{}", unix_scheme(*transport), path.display()),
            Self::Abstract { transport, name } => {
                write!(f, "{}:@{}", unix_scheme(*transport), name.display())
            }
        }
    }
}

fn unix_scheme(transport: Transport) -> &'static str {
    SCHEMES.iter().find(|(_, scheme)| *scheme == Scheme::Unix(transport)).map_or("unix", |(name, _)| name)
}

impl FromStr for Listen {
    type Err = Error;

    /// Reads `NAME=ADDRESS[,OPTION[=VALUE]]...`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] says what is wrong and what would be right.
    fn from_str(text: &str) -> Result<Self> {
        let mut parts = split_at_commas(text).into_iter();
        let head = parts.next().unwrap_or_default();
        let Some((name, address)) = head.split_once('=') else {
            return invalid(format!("{head:?} has no name: write NAME=ADDRESS, such as http={head}"));
        };
        fds::check_name(name)?;
        let about = |detail: String| Error::Invalid { detail: format!("listener {name}: {detail}") };
        let addresses = addresses(address).map_err(about)?;
        let several = addresses.len() > 1;
        let mut asked = Asked::default();
        for option in parts {
            asked.add(&option).map_err(about)?;
        }
        let sockets = addresses.into_iter().map(|(address, version)| {
            let name = match &address {
                Address::Inet { address, .. } if several => format!("{name}.{}", address.port()),
                _ => name.to_owned(),
            };
            asked.check(&address).map_err(about)?;
            Ok(asked.spec(name, address, version))
        });
        Ok(Self { sockets: sockets.collect::<Result<_>>()? })
    }
}

fn invalid<T>(detail: String) -> Result<T> {
    Err(Error::Invalid { detail })
}

fn split_at_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.peek() == Some(&',') => {
                parts.last_mut().expect("there is always one").extend(chars.next())
            }
            ',' => parts.push(String::new()),
            c => parts.last_mut().expect("there is always one").push(c),
        }
    }
    parts
}

/// Returns the addresses, and for each the version that was asked for.
fn addresses(text: &str) -> Result<Vec<(Address, Option<Version>)>, String> {
    let (scheme, rest) = scheme(text)?;
    match scheme {
        Scheme::Unix(transport) => Ok(vec![(unix_address(transport, rest)?, None)]),
        Scheme::Inet(transport, version) => {
            let (host, ports) = host_and_ports(rest)?;
            let (ip, scope) = host_address(host, version)?;
            // Written without brackets, it stands for both families.
            let falls_back = is_every(host) && version.is_none();
            let at = |port| {
                let address = match ip {
                    IpAddr::V4(ip) => SocketAddr::from((ip, port)),
                    IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
                };
                (Address::Inet { transport, address, falls_back }, version)
            };
            Ok(ports.map(at).collect())
        }
    }
}

fn scheme(text: &str) -> Result<(Scheme, &str), String> {
    if text.starts_with(['/', '@']) || text.starts_with("./") {
        return Ok((Scheme::Unix(Transport::Stream), text));
    }
    let tcp = Scheme::Inet(Transport::Stream, None);
    let Some((word, rest)) = text.split_once(':') else { return Ok((tcp, text)) };
    if let Some((_, scheme)) = SCHEMES.iter().find(|(name, _)| *name == word) {
        return Ok((*scheme, rest));
    }
    let looks_like_one = word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word != "localhost"
        && (rest.contains([':', '/', '@', '[']) || nearest(word, &SCHEMES.map(|(name, _)| name)).is_some());
    if looks_like_one && !word.contains('.') {
        let known = SCHEMES.map(|(name, _)| name).join(", ");
        return Err(format!(
            "{word:?} is no kind of socket{}: there are {known}",
            suggestion(word, SCHEMES.map(|(name, _)| name))
        ));
    }
    Ok((tcp, text))
}

fn unix_address(transport: Transport, text: &str) -> Result<Address, String> {
    if let Some(name) = text.strip_prefix('@') {
        return match name.len() {
            0 => Err("an abstract socket needs a name after the @".to_owned()),
            1..=PATH_MAX => Ok(Address::Abstract { transport, name: OsString::from(name) }),
            length => Err(format!("the name is {length} bytes long, and there is room for {PATH_MAX}")),
        };
    }
    let path = PathBuf::from(text);
    if path.file_name().is_none() || text.ends_with('/') {
        return Err(format!("{text:?} is no path of a socket: write unix:/run/NAME/socket, or unix:@NAME"));
    }
    if text.len() > PATH_MAX {
        return Err(format!(
            "the path is {} bytes long, and a socket's path has room for {PATH_MAX}: use a shorter directory such as /run/NAME",
            text.len()
        ));
    }
    Ok(Address::Path { transport, path })
}

fn host_and_ports(text: &str) -> Result<(&str, RangeInclusive<u16>), String> {
    let (host, ports) = match text.rsplit_once(':') {
        Some((host, ports)) if !ports.ends_with(']') => (host, ports),
        // A number alone is a port; anything else lacks one.
        None if text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains('.') => ("", text),
        _ => return Err(format!("{text:?} has no port: write {text}:PORT")),
    };
    if !host.starts_with('[') && host.contains(':') {
        return Err(format!("{text:?}: write an IPv6 address in brackets, such as [::1]:80"));
    }
    let port = |word: &str| {
        word.parse::<u16>().map_err(|_| format!("{word:?} is no port: use a number from 0 to 65535"))
    };
    let Some((first, last)) = ports.split_once('-') else {
        let only = port(ports)?;
        return Ok((host, only..=only));
    };
    let (first, last) = (port(first)?, port(last)?);
    if first == 0 || first > last {
        return Err(format!("{ports} is no range of ports: write FIRST-LAST, such as 8000-8010"));
    }
    if usize::from(last - first) >= RANGE_MAX {
        return Err(format!("{ports} is more than {RANGE_MAX} ports"));
    }
    Ok((host, first..=last))
}

fn is_every(host: &str) -> bool {
    matches!(host, "" | "*")
}

/// Returns the address and, for one of a link, the interface's number.
fn host_address(host: &str, version: Option<Version>) -> Result<(IpAddr, u32), String> {
    let v4 = version == Some(Version::V4);
    let (ip, scope): (IpAddr, u32) = match host {
        host if is_every(host) && v4 => (Ipv4Addr::UNSPECIFIED.into(), 0),
        host if is_every(host) => (Ipv6Addr::UNSPECIFIED.into(), 0),
        "localhost" if version == Some(Version::V6) => (Ipv6Addr::LOCALHOST.into(), 0),
        "localhost" => (Ipv4Addr::LOCALHOST.into(), 0),
        host => match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => v6_address(inner).map(|(ip, scope)| (ip.into(), scope))?,
            None => (v4_address(host)?.into(), 0),
        },
    };
    match (ip, version) {
        (IpAddr::V6(_), Some(Version::V4)) => Err(format!("{host} is no IPv4 address")),
        (IpAddr::V4(_), Some(Version::V6)) => Err(format!("{host} is no IPv6 address")),
        _ => Ok((ip, scope)),
    }
}

fn v4_address(host: &str) -> Result<Ipv4Addr, String> {
    host.parse().map_err(|_| {
        if host.starts_with(|c: char| c.is_ascii_digit()) {
            format!("{host:?} is no IPv4 address")
        } else {
            format!("host names other than localhost are not looked up: write the address of {host:?}")
        }
    })
}

fn v6_address(inner: &str) -> Result<(Ipv6Addr, u32), String> {
    let (ip, scope) = inner.split_once('%').unwrap_or((inner, ""));
    let ip = ip.parse().map_err(|_| format!("{ip:?} is no IPv6 address"))?;
    let scope = match scope {
        "" => 0,
        name => match name.parse() {
            Ok(number) => number,
            Err(_) => bind::interface(name).map_err(|_| format!("there is no network interface {name:?}"))?,
        },
    };
    Ok((ip, scope))
}

/// The options that were written behind an address.
#[derive(Default)]
struct Asked {
    options: Options,
    mode: Option<u32>,
    owner: Option<String>,
    group: Option<String>,
    /// Their names, in order.
    given: Vec<&'static str>,
}

impl Asked {
    fn add(&mut self, text: &str) -> Result<(), String> {
        let (word, value) = match text.split_once('=') {
            Some((word, value)) => (word, Some(value)),
            None => (text, None),
        };
        let Some(name) = OPTIONS.iter().find(|name| **name == word) else { return Err(unknown(word)) };
        if self.given.contains(name) {
            return Err(format!("option {name} is given twice"));
        }
        self.given.push(name);
        let switch = || on_or_off(name, value);
        match *name {
            "backlog" => self.options.backlog = Some(length(name, value)?),
            "reuseaddr" => self.options.reuse_address = Some(switch()?),
            "v6only" => self.options.v6_only = Some(switch()?),
            "keepalive" => self.options.keep_alive = Some(switch()?),
            "nodelay" => self.options.no_delay = Some(switch()?),
            "freebind" => self.options.free_bind = Some(switch()?),
            "transparent" => self.options.transparent = Some(switch()?),
            "rcvbuf" => self.options.receive_buffer = Some(size(name, value)?),
            "sndbuf" => self.options.send_buffer = Some(size(name, value)?),
            "mode" => self.mode = Some(mode(value)?),
            "owner" => self.owner = Some(owner(name, value)?),
            "group" => self.group = Some(owner(name, value)?),
            other => unreachable!("{other} is in the list of options"),
        }
        Ok(())
    }

    fn check(&self, address: &Address) -> Result<(), String> {
        for name in &self.given {
            let (fits, of) = match *name {
                "mode" | "owner" | "group" => {
                    (matches!(address, Address::Path { .. }), "Unix sockets with a path")
                }
                "backlog" => (!matches!(transport(address), Transport::Datagram), "sockets that listen"),
                "keepalive" | "nodelay" => {
                    (matches!(address, Address::Inet { transport: Transport::Stream, .. }), "TCP sockets")
                }
                "v6only" => {
                    (matches!(address, Address::Inet { address, .. } if address.is_ipv6()), "IPv6 sockets")
                }
                "freebind" | "reuseaddr" | "transparent" => {
                    (matches!(address, Address::Inet { .. }), "TCP and UDP sockets")
                }
                _ => (true, ""),
            };
            if !fits {
                return Err(format!("option {name} is for {of}, and {address} is none"));
            }
        }
        Ok(())
    }

    fn spec(&self, name: String, address: Address, version: Option<Version>) -> Spec {
        let mut options = self.options.clone();
        if let Address::Inet { address: SocketAddr::V6(_), .. } = &address {
            // The system's default (net.ipv6.bindv6only) must not decide what is served.
            options.v6_only = options.v6_only.or(Some(version == Some(Version::V6)));
        }
        let (mode, owner, group) = (self.mode, self.owner.clone(), self.group.clone());
        Spec { name, address, options, mode, owner, group }
    }
}

fn transport(address: &Address) -> Transport {
    match address {
        Address::Inet { transport, .. }
        | Address::Path { transport, .. }
        | Address::Abstract { transport, .. } => *transport,
    }
}

fn unknown(word: &str) -> String {
    if distance(word, "reuseport") <= 1 {
        return "there is no option reuseport: a second process that binds must fail, or two serve at once"
            .to_owned();
    }
    let known = OPTIONS.join(", ");
    format!("{word:?} is no option{}: there are {known}", suggestion(word, OPTIONS))
}

fn suggestion<const N: usize>(word: &str, known: [&'static str; N]) -> String {
    nearest(word, &known).map_or_else(String::new, |near| format!(" (perhaps {near})"))
}

fn on_or_off(name: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("on" | "yes" | "true" | "1") => Ok(true),
        Some("off" | "no" | "false" | "0") => Ok(false),
        Some(other) => Err(format!("{name} is on or off, not {other:?}")),
    }
}

fn length(name: &str, value: Option<&str>) -> Result<u32, String> {
    let of = |value: &str| value.parse().ok().filter(|n| (1..=i32::MAX as u32).contains(n));
    value
        .and_then(of)
        .ok_or_else(|| format!("{name} needs a number, such as {name}=1024, not {:?}", value.unwrap_or("")))
}

/// Kernels count buffers in an int, and double what they are given.
const BUFFER_MAX: usize = i32::MAX as usize / 2;

fn size(name: &str, value: Option<&str>) -> Result<usize, String> {
    let of = |value: &str| {
        let (number, unit) = match value.find(|c: char| !c.is_ascii_digit()) {
            Some(at) => value.split_at(at),
            None => (value, ""),
        };
        let unit = match unit {
            "" => 1,
            "k" | "K" => 1 << 10,
            "m" | "M" => 1 << 20,
            _ => return None,
        };
        number.parse::<usize>().ok()?.checked_mul(unit).filter(|size| (1..=BUFFER_MAX).contains(size))
    };
    value.and_then(of).ok_or_else(|| {
        format!("{name} needs a number of bytes, such as {name}=256k, not {:?}", value.unwrap_or(""))
    })
}

fn mode(value: Option<&str>) -> Result<u32, String> {
    value
        .and_then(|value| u32::from_str_radix(value, 8).ok())
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| format!("mode needs permission bits, such as mode=660, not {:?}", value.unwrap_or("")))
}

fn owner(name: &str, value: Option<&str>) -> Result<String, String> {
    match value {
        Some(value) if !value.is_empty() => Ok(value.to_owned()),
        _ => Err(format!("{name} needs a name or a number, such as {name}=www-data")),
    }
}

/// Binds those of these sockets that are not there yet, and returns each with its name.
///
/// # Errors
///
/// Two of one name; as [`Spec::bind`].
pub fn bind_missing(listens: &[Listen], is_there: impl Fn(&str) -> bool) -> Result<Vec<(String, OwnedFd)>> {
    let specs: Vec<&Spec> = listens.iter().flat_map(|listen| &listen.sockets).collect();
    for (i, spec) in specs.iter().enumerate() {
        if specs[..i].iter().any(|other| other.name == spec.name) {
            return invalid(format!("two listeners are called {}: give each a name of its own", spec.name));
        }
    }
    let missing = specs.into_iter().filter(|spec| !is_there(&spec.name));
    missing.map(|spec| Ok((spec.name.clone(), spec.bind()?))).collect()
}

impl Spec {
    /// Binds the socket; it listens, unless it is of a kind that does not.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] names the listener and, as far as it can be found, what is in the way: the process that has the port or the path, a port for
    /// which privileges are needed, a directory that is not there.
    pub fn bind(&self) -> Result<OwnedFd> {
        let attempt = format!("listen on {} for {}", self.address, self.name);
        let bound = match &self.address {
            Address::Inet { transport, address, falls_back } => {
                let bound = bind::inet(*transport, *address, &self.options);
                match bound {
                    Err(e) if *falls_back && bind::lacks_family(&e) => {
                        self.bind_v4(*transport, address.port())
                    }
                    bound => bound,
                }
                .map_err(|e| explain_inet(e, *transport, *address))
            }
            Address::Abstract { transport, name } => {
                let bound = bind::unix_abstract(*transport, name.as_bytes(), &self.options);
                bound.map_err(|e| explain_abstract(e, name))
            }
            Address::Path { transport, path } => self.bind_path(*transport, path)?,
        };
        let fd = bound.map_err(|e| Error::io(attempt, e))?;
        self.warn_of_less(&fd);
        Ok(fd)
    }

    fn bind_v4(&self, transport: Transport, port: u16) -> io::Result<OwnedFd> {
        let options = Options { v6_only: None, ..self.options.clone() };
        bind::inet(transport, (Ipv4Addr::UNSPECIFIED, port).into(), &options)
    }

    /// What is wrong with the command line is told from what the kernel says.
    fn bind_path(&self, transport: Transport, path: &Path) -> Result<io::Result<OwnedFd>> {
        let about = |e: Error| Error::Invalid { detail: format!("listener {}: {e}", self.name) };
        let access = Access {
            mode: self.mode,
            uid: self.owner.as_deref().map(user_number).transpose().map_err(about)?,
            gid: self.group.as_deref().map(group_number).transpose().map_err(about)?,
        };
        Ok(match bind::unix_path(transport, path, &self.options, access) {
            Ok(Ok(fd)) => Ok(fd),
            Ok(Err(occupied)) => Err(explain_occupied(&occupied, path)),
            Err(e) => Err(explain_path(e, path)),
        })
    }

    /// The kernel cuts what it is asked for, and says nothing.
    fn warn_of_less(&self, fd: &OwnedFd) {
        use std::os::fd::AsFd;
        let longest = || fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok();
        if let Some((asked, longest)) = self.options.backlog.zip(longest())
            && asked > longest
        {
            tracing::warn!(
                "listener {}: the accept queue is {longest} long and not {asked}: net.core.somaxconn allows no more",
                self.name
            );
        }
        let Ok((receive, send)) = bind::buffers(fd.as_fd()) else { return };
        for (name, asked, got) in
            [("rcvbuf", self.options.receive_buffer, receive), ("sndbuf", self.options.send_buffer, send)]
        {
            if asked.is_some_and(|asked| got < asked) {
                tracing::warn!(
                    "listener {}: {name} is {} bytes: the system allows no more",
                    self.name,
                    got / 2
                );
            }
        }
    }
}

/// Returns the number of a user, by name or number.
///
/// # Errors
///
/// [`Error::Invalid`] where /etc/passwd has none of this name.
pub fn user_number(who: &str) -> Result<u32> {
    let detail = || Error::Invalid { detail: format!("there is no user {who:?} in {USERS}") };
    number_of(who, Path::new(USERS)).ok_or_else(detail)
}

/// Returns the number of a group, by name or number.
///
/// # Errors
///
/// [`Error::Invalid`] where /etc/group has none of this name.
pub fn group_number(who: &str) -> Result<u32> {
    let detail = || Error::Invalid { detail: format!("there is no group {who:?} in {GROUPS}") };
    number_of(who, Path::new(GROUPS)).ok_or_else(detail)
}

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// Returns the number of a user or a group, from its number or from the file that lists them by name.
fn number_of(who: &str, file: &Path) -> Option<u32> {
    if let Ok(number) = who.parse() {
        return Some(number);
    }
    let table = fs::read(file).ok()?;
    table.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        let number = fields.nth(1)?;
        (name == who.as_bytes()).then(|| std::str::from_utf8(number).ok()?.parse().ok())?
    })
}

fn because(e: &io::Error, why: &str) -> io::Error {
    io::Error::new(e.kind(), format!("{e}; {why}"))
}

fn explain_inet(e: io::Error, transport: Transport, address: SocketAddr) -> io::Error {
    match e.kind() {
        io::ErrorKind::AddrInUse => because(
            &e,
            &format!("port {} is {}", address.port(), had_by(&users::of_address(transport, address))),
        ),
        io::ErrorKind::PermissionDenied => match unprivileged_from() {
            Some(first) if address.port() != 0 && address.port() < first => because(
                &e,
                &format!("ports below {first} are for root and for those with CAP_NET_BIND_SERVICE"),
            ),
            _ => e,
        },
        io::ErrorKind::AddrNotAvailable => {
            because(&e, "this machine does not have the address; the option freebind binds it anyway")
        }
        _ if bind::lacks_family(&e) => because(&e, "this machine has no IPv6"),
        _ => e,
    }
}

fn unprivileged_from() -> Option<u16> {
    fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok()?.trim().parse().ok()
}

/// Says who has something, in words that follow "is".
fn had_by(users: &[users::User]) -> String {
    if users.is_empty() {
        return "taken by a process that this user may not see".to_owned();
    }
    let users: Vec<String> = users.iter().map(ToString::to_string).collect();
    format!("taken by {}", users.join(" and "))
}

fn explain_abstract(e: io::Error, name: &OsStr) -> io::Error {
    match e.kind() {
        io::ErrorKind::AddrInUse => {
            because(&e, &format!("the name is {}", had_by(&users::of_unix(&format!("@{}", name.display())))))
        }
        _ => e,
    }
}

fn explain_occupied(occupied: &Occupied, path: &Path) -> io::Error {
    let why = match occupied {
        Occupied::ByFile => "a file that is no socket is there".to_owned(),
        Occupied::ByLive(cred) => {
            // Who listened first is known to the kernel, and may be gone while others have the socket.
            let listener = cred.and_then(|cred| users::process(cred.pid));
            let users = listener.map_or_else(|| users::of_unix(&path.to_string_lossy()), |user| vec![user]);
            format!("the path is {}", had_by(&users))
        }
    };
    because(&bind::in_use(), &why)
}

fn explain_path(e: io::Error, path: &Path) -> io::Error {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match e.kind() {
        io::ErrorKind::NotFound if !dir.exists() => {
            because(&e, &format!("there is no directory {}: make it first", dir.display()))
        }
        io::ErrorKind::PermissionDenied => {
            because(&e, &format!("this user may not write to {}", dir.display()))
        }
        _ => e,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::socket::{self, Family};

    fn read(text: &str) -> Vec<Spec> {
        text.parse::<Listen>().unwrap_or_else(|e| panic!("{text}: {e}")).sockets
    }

    fn error(text: &str) -> String {
        text.parse::<Listen>().expect_err(text).to_string()
    }

    #[test]
    fn every_form_of_address_is_understood() {
        for (text, expected) in [
            ("0.0.0.0:8080", "0.0.0.0:8080 v6only=None"),
            ("[::]:8080", "[::]:8080 v6only=Some(false)"),
            ("[::1]:80,v6only", "[::1]:80 v6only=Some(true)"),
            ("[fe80::1%7]:80", "[fe80::1%7]:80 v6only=Some(false)"),
            ("[fe80::1%lo]:80", "[fe80::1%1]:80 v6only=Some(false)"),
            ("8080", "[::]:8080 v6only=Some(false)"),
            (":8080", "[::]:8080 v6only=Some(false)"),
            ("*:8080", "[::]:8080 v6only=Some(false)"),
            ("tcp:8080", "[::]:8080 v6only=Some(false)"),
            ("tcp4:8080", "0.0.0.0:8080 v6only=None"),
            ("tcp6:8080", "[::]:8080 v6only=Some(true)"),
            ("tcp6:[::]:8080", "[::]:8080 v6only=Some(true)"),
            ("tcp6:[::]:8080,v6only=off", "[::]:8080 v6only=Some(false)"),
            ("tcp:127.0.0.1:0", "127.0.0.1:0 v6only=None"),
            ("localhost:80", "127.0.0.1:80 v6only=None"),
            ("tcp6:localhost:80", "[::1]:80 v6only=Some(true)"),
            ("udp:127.0.0.1:53", "udp:127.0.0.1:53 v6only=None"),
            ("udp4:53", "udp:0.0.0.0:53 v6only=None"),
            ("udp6:53", "udp:[::]:53 v6only=Some(true)"),
            ("unix:/run/x", "unix:/run/x v6only=None"),
            ("/run/x", "unix:/run/x v6only=None"),
            ("./x", "unix:./x v6only=None"),
            ("unix:x", "unix:x v6only=None"),
            ("/run/a\\,b", "unix:/run/a,b v6only=None"),
            ("/run/a:b=c", "unix:/run/a:b=c v6only=None"),
            ("seqpacket:/run/x", "seqpacket:/run/x v6only=None"),
            ("datagram:/run/x", "datagram:/run/x v6only=None"),
            ("unix:@x", "unix:@x v6only=None"),
            ("@x", "unix:@x v6only=None"),
            ("datagram:@x", "datagram:@x v6only=None"),
        ] {
            let [spec] = read(&format!("a={text}")).try_into().unwrap();
            assert_eq!(spec.name, "a");
            let shown = format!("{} v6only={:?}", spec.address, spec.options.v6_only);
            assert_eq!(shown, expected, "{text}");
        }
    }

    #[test]
    fn a_range_is_a_socket_for_each_port_which_is_in_its_name() {
        let named = |text| {
            let named = read(text).into_iter().map(|spec| format!("{} {}", spec.name, spec.address));
            named.collect::<Vec<_>>()
        };
        assert_eq!(
            named("a=127.0.0.1:8000-8002"),
            ["a.8000 127.0.0.1:8000", "a.8001 127.0.0.1:8001", "a.8002 127.0.0.1:8002"]
        );
        assert_eq!(named("a=8000-8000"), ["a [::]:8000"]);
        assert_eq!(named("a=udp4:1-1024").len(), 1024);
    }

    #[test]
    fn options_are_read() {
        let [spec] = read("a=tcp4:1,backlog=7,reuseaddr=off,keepalive,nodelay=yes,freebind=on,transparent=1,rcvbuf=64k,sndbuf=1m")
            .try_into()
            .unwrap();
        let expected = Options {
            backlog: Some(7),
            reuse_address: Some(false),
            v6_only: None,
            keep_alive: Some(true),
            no_delay: Some(true),
            receive_buffer: Some(65536),
            send_buffer: Some(1 << 20),
            free_bind: Some(true),
            transparent: Some(true),
        };
        assert_eq!(spec.options, expected);
        let [spec] = read("a=/x,mode=0660,owner=root,group=7").try_into().unwrap();
        assert_eq!(
            (spec.mode, spec.owner.as_deref(), spec.group.as_deref()),
            (Some(0o660), Some("root"), Some("7"))
        );
    }

    fn expect_errors(cases: &[(&str, &str)]) {
        for (text, expected) in cases {
            let said = error(text);
            assert!(said.contains(expected), "{text}: {said}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_is_said_with_what_would_be_right() {
        let long = format!("a=/{}", "x".repeat(PATH_MAX));
        let long_name = format!("a=@{}", "x".repeat(PATH_MAX + 1));
        expect_errors(&[
            ("0.0.0.0:80", "has no name: write NAME=ADDRESS, such as http=0.0.0.0:80"),
            ("", "has no name"),
            ("=0.0.0.0:80", "cannot name a listener"),
            ("a b=0.0.0.0:80", "cannot name a listener"),
            ("a=", "has no port"),
            ("a=0.0.0.0", "listener a: \"0.0.0.0\" has no port: write 0.0.0.0:PORT"),
            ("a=localhost", "write localhost:PORT"),
            ("a=0.0.0.0:", "\"\" is no port"),
            ("a=0.0.0.0:http", "\"http\" is no port: use a number from 0 to 65535"),
            ("a=0.0.0.0:65536", "\"65536\" is no port"),
            ("a=0.0.0.0:-1", "is no port"),
            ("a=0.0.0.0:9-8", "9-8 is no range of ports"),
            ("a=0.0.0.0:0-8", "0-8 is no range of ports"),
            ("a=0.0.0.0:1-1025", "more than 1024 ports"),
            ("a=::1:80", "write an IPv6 address in brackets"),
            ("a=[::1]", "write [::1]:PORT"),
            ("a=::1", "write an IPv6 address in brackets, such as [::1]:80"),
            ("a=[::x]:80", "\"::x\" is no IPv6 address"),
            ("a=[fe80::1%nosuchdev]:80", "there is no network interface \"nosuchdev\""),
            ("a=1.2.3:80", "\"1.2.3\" is no IPv4 address"),
            ("a=example.com:80", "host names other than localhost are not looked up"),
            ("a=myhost:80", "host names other than localhost are not looked up"),
            ("a=tcp4:[::1]:80", "[::1] is no IPv4 address"),
            ("a=tcp6:127.0.0.1:80", "127.0.0.1 is no IPv6 address"),
            ("a=tpc:80", "\"tpc\" is no kind of socket (perhaps tcp)"),
            ("a=http:127.0.0.1:80", "\"http\" is no kind of socket (perhaps tcp): there are tcp, tcp4"),
            ("a=sctp-web:[::1]:80", "\"sctp-web\" is no kind of socket: there are tcp"),
            ("a=unix:", "is no path of a socket"),
            ("a=unix:/", "is no path of a socket"),
            ("a=unix:/run/", "is no path of a socket"),
            ("a=unix:@", "needs a name after the @"),
            (&long, "the path is 108 bytes long, and a socket's path has room for 107"),
            (&long_name, "the name is 108 bytes long"),
        ]);
    }

    #[test]
    fn what_is_wrong_with_an_option_is_said_with_what_would_be_right() {
        expect_errors(&[
            ("a=tcp4:1,backlgo=5", "\"backlgo\" is no option (perhaps backlog): there are backlog, freebind"),
            ("a=tcp4:1,x", "\"x\" is no option: there are"),
            ("a=tcp4:1,", "\"\" is no option"),
            ("a=tcp4:1,reuseport", "a second process that binds must fail"),
            ("a=tcp4:1,reuse_port", "a second process that binds must fail"),
            ("a=tcp4:1,nodelay,nodelay=off", "option nodelay is given twice"),
            ("a=tcp4:1,nodelay=maybe", "nodelay is on or off, not \"maybe\""),
            ("a=tcp4:1,backlog", "backlog needs a number, such as backlog=1024"),
            ("a=tcp4:1,backlog=0", "backlog needs a number"),
            ("a=tcp4:1,backlog=4294967295", "backlog needs a number"),
            ("a=tcp4:1,rcvbuf=1g", "rcvbuf needs a number of bytes, such as rcvbuf=256k, not \"1g\""),
            ("a=tcp4:1,sndbuf=0", "sndbuf needs a number of bytes"),
            ("a=tcp4:1,sndbuf=9999999999999m", "sndbuf needs a number of bytes"),
            ("a=/x,mode=999", "mode needs permission bits, such as mode=660"),
            ("a=/x,mode=7777", "mode needs permission bits"),
            ("a=/x,owner", "owner needs a name or a number"),
            ("a=/x,group=", "group needs a name or a number"),
            ("a=tcp4:1,mode=660", "option mode is for Unix sockets with a path, and 0.0.0.0:1 is none"),
            ("a=@x,owner=root", "option owner is for Unix sockets with a path"),
            ("a=udp4:1,backlog=5", "option backlog is for sockets that listen"),
            ("a=datagram:/x,backlog=5", "option backlog is for sockets that listen"),
            ("a=udp4:1,keepalive", "option keepalive is for TCP sockets, and udp:0.0.0.0:1 is none"),
            ("a=/x,nodelay", "option nodelay is for TCP sockets"),
            ("a=tcp4:1,v6only", "option v6only is for IPv6 sockets"),
            ("a=/x,reuseaddr", "option reuseaddr is for TCP and UDP sockets"),
            ("a=/x,freebind", "option freebind is for TCP and UDP sockets"),
            ("a=/x,transparent", "option transparent is for TCP and UDP sockets"),
        ]);
    }

    #[test]
    fn no_option_is_forgotten() {
        for name in OPTIONS {
            let value = match name {
                "backlog" | "rcvbuf" | "sndbuf" => "=7",
                "owner" | "group" => "=root",
                "mode" => "=600",
                _ => "",
            };
            let address = if matches!(name, "owner" | "group" | "mode") { "/x" } else { "[::]:1" };
            assert_ne!(read(&format!("a={address},{name}{value}")), read(&format!("a={address}")), "{name}");
        }
    }

    fn bind(text: &str) -> Result<Vec<(String, OwnedFd)>> {
        bind_missing(&[text.parse().unwrap()], |_| false)
    }

    #[test]
    fn two_of_one_name_are_refused_and_one_that_is_there_is_not_bound() {
        let listens =
            ["a=tcp4:127.0.0.1:0", "b=127.0.0.1:0", "a=@x"].map(|text| text.parse::<Listen>().unwrap());
        let said = bind_missing(&listens, |_| false).unwrap_err().to_string();
        assert!(said.contains("two listeners are called a"), "{said}");
        let bound = bind_missing(&listens[..2], |name| name == "a").unwrap();
        assert_eq!(bound.len(), 1);
        assert_eq!(bound[0].0, "b");
    }

    #[test]
    fn each_kind_is_bound_as_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |scheme: &str, name: &str| format!("a={scheme}:{}", dir.path().join(name).display());
        let abstract_name = format!("a=@handoff-listen-{}", std::process::id());
        use {Family::*, Transport::*};
        for (text, family, transport) in [
            ("a=127.0.0.1:0", Inet, Stream),
            ("a=udp:127.0.0.1:0", Inet, Datagram),
            ("a=localhost:0", Inet, Stream),
            (&at("unix", "s"), Unix, Stream),
            (&at("seqpacket", "p"), Unix, SeqPacket),
            (&at("datagram", "d"), Unix, Datagram),
            (&abstract_name, Unix, Stream),
        ] {
            let [(_, fd)] = bind(text).unwrap().try_into().unwrap();
            let kind = socket::kind(fd.as_fd()).unwrap();
            assert_eq!((kind.family, kind.transport), (family, transport), "{text}");
            assert_eq!(kind.listening, transport != Datagram, "{text}");
            fds::check_listener("a", fd.as_fd()).unwrap();
        }
    }

    #[test]
    fn a_port_that_is_taken_is_named_with_who_has_it() {
        let [(_, fd)] = bind("a=127.0.0.1:0").unwrap().try_into().unwrap();
        let address = socket::local_address(fd.as_fd()).unwrap();
        let said = bind(&format!("web={address}")).unwrap_err().to_string();
        let own = format!("taken by pid {} (", std::process::id());
        assert!(said.contains(&format!("listen on {address} for web")) && said.contains(&own), "{said}");
    }

    #[test]
    fn a_path_is_taken_over_from_the_dead_and_from_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        for scheme in ["unix", "seqpacket", "datagram"] {
            let path = dir.path().join(scheme);
            let text = format!("a={scheme}:{},mode=640", path.display());
            let first = bind(&text).unwrap();
            let meta = fs::metadata(&path).unwrap();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777, 0o640);
            let said = bind(&text).unwrap_err().to_string();
            let own = format!("taken by pid {} (", std::process::id());
            assert!(said.contains(&own), "{said}");
            let stranger = if scheme == "unix" { "datagram" } else { "unix" };
            let said = bind(&format!("a={stranger}:{}", path.display())).unwrap_err().to_string();
            assert!(said.contains(&own), "of another kind: {said}");
            drop(first);
            let [(_, fd)] = bind(&text).unwrap().try_into().unwrap();
            assert_eq!(socket::local_address(fd.as_fd()).unwrap(), path.to_str().unwrap());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left beside them");
        fs::write(dir.path().join("file"), "precious").unwrap();
        let said = bind(&format!("a={}", dir.path().join("file").display())).unwrap_err().to_string();
        assert!(said.contains("no socket"), "{said}");
        assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "precious");
        let said = bind(&format!("a={}", dir.path().join("none/x").display())).unwrap_err().to_string();
        assert!(said.contains("there is no directory"), "{said}");
        let said = bind(&format!("a={},owner=nobody-of-this-name", dir.path().join("x").display()));
        assert!(said.unwrap_err().to_string().contains("there is no user"));
    }

    #[test]
    fn users_and_groups_are_found_in_their_files() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, b"root:x:0:0::/:/bin/sh\nnonsense\nkv:x:117:9::/:/bin/sh\n").unwrap();
        assert_eq!(number_of("kv", file.path()), Some(117));
        assert_eq!(number_of("42", file.path()), Some(42));
        assert_eq!(number_of("nobody", file.path()), None);
    }
}
