mod holder;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use handoff::chain::{CONTROL_VAR, Chain, DATA_DIR_VAR};
use handoff::control::{Control, is_absent};
use handoff::dialect::{Dialect, Layout};
use handoff::error::Error;
use handoff::fds::{self, Role};
use handoff::listen::{self, Listen};

use crate::exit::{self, Exit};
use crate::link::{Next, Opened};
use crate::{duration, logging};

/// Open listening sockets and become the next program, which has them
///
/// A socket whose name came from elsewhere already is not bound: so the same command line starts the first daemon, and
/// its successor beside it.
///
/// With --serve PATH no program follows: this process stays, as small as can be, and gives copies of the sockets to those that come
/// with --from PATH. SIGHUP makes it become the program at its own path anew, with all its sockets.
///
/// ADDRESS is IP:PORT, [IPv6]:PORT, :PORT for every address of both families, localhost:PORT, a range of ports (a socket each, called
/// NAME.PORT), any of these after tcp4:, tcp6:, udp:, udp4: or udp6:, or unix:PATH, seqpacket:PATH, datagram:PATH, unix:@NAME.
/// OPTION is backlog=N, reuseaddr=off, v6only, keepalive, nodelay, rcvbuf=BYTES, sndbuf=BYTES, freebind, transparent; for a PATH,
/// mode=660, owner=USER, group=GROUP.
#[derive(clap::Args)]
#[command(after_help = exit::after_help(EXAMPLES))]
pub struct Args {
    /// Bind a socket and call it NAME; may be given several times
    #[arg(long, value_name = "NAME=ADDRESS[,OPTION...]")]
    listen: Vec<Listen>,

    /// Take the sockets that a service manager passed, and make sure that they listen
    #[arg(long)]
    inherit: bool,

    /// Fetch copies of the sockets of the daemon that serves; with --listen, bind where none does
    #[arg(long)]
    from_incumbent: bool,

    /// Fetch copies of the sockets of the holder at this path; with --listen, bind where there is none
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    from: Option<PathBuf>,

    /// Print what the holder has: name, kind, address
    #[arg(long, requires = "from", conflicts_with_all = ["serve", "store", "forget", "listen", "inherit", "from_incumbent"])]
    list: bool,

    /// Print one JSON array
    #[arg(long, requires = "list")]
    json: bool,

    /// Make the holder close this socket; may be given several times
    #[arg(long, value_name = "NAME", requires = "from", conflicts_with_all = ["serve", "store", "listen", "inherit", "from_incumbent"])]
    forget: Vec<String>,

    /// Give copies of the sockets to the holder at this path
    #[arg(long, value_name = "PATH", conflicts_with = "serve", value_hint = clap::ValueHint::FilePath)]
    store: Option<PathBuf>,

    /// Let those that are stored take the place of others of their names
    #[arg(long, requires = "store")]
    replace: bool,

    /// Stay, and give copies of the sockets to those that come to this path
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    serve: Option<PathBuf>,

    /// Let this user, or :GROUP, list sockets and have copies, beside root and the holder's own user
    #[arg(long, value_name = "WHO", requires = "serve")]
    allow: Vec<String>,

    /// Let this user, or :GROUP, store and remove sockets too
    #[arg(long, value_name = "WHO", requires = "serve")]
    allow_store: Vec<String>,

    /// Write a newline to this descriptor and close it when the holder is ready, as s6 expects
    #[arg(long, value_name = "NUMBER", requires = "serve")]
    ready_fd: Option<i32>,

    /// Call the socket that came as OLD by this name: its name, its number or its address
    #[arg(long, value_name = "NAME=OLD", value_parser = parse_name)]
    name: Vec<(String, String)>,

    /// Pass on this socket and no other; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Tell the program of its sockets so: listen-fds (the default), server-starter, einhorn, s6 or nginx; may be given several times
    #[arg(long = "as", value_name = "DIALECT", value_parser = dialects())]
    dialects: Vec<Dialect>,

    /// Put a socket at this descriptor
    #[arg(long, value_name = "NAME=NUMBER", value_parser = parse_place)]
    fd: Vec<(String, i32)>,

    /// Make a socket the program's standard input
    #[arg(long, value_name = "NAME")]
    stdin: Option<String>,

    /// The control socket of the daemon that serves [default: control in the data directory]
    #[arg(long, value_name = "PATH", env = CONTROL_VAR, hide_env_values = true, value_hint = clap::ValueHint::FilePath)]
    control: Option<PathBuf>,

    /// Wait so long for an answer
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse_some)]
    timeout: Duration,

    #[command(flatten)]
    pub next: Next,
}

const EXAMPLES: &str = "
  exec handoff hold-fds --listen http=0.0.0.0:8080 -- handoff lock /var/lib/kv -- kvd
  exec handoff hold-fds --listen http=:80,backlog=4096 --listen admin=unix:/run/kv/admin,mode=660,group=adm -- kvd
  handoff hold-fds --serve /run/kv/holder --listen http=:80 &   # stays
  exec handoff hold-fds --from /run/kv/holder -- handoff lock /var/lib/kv -- kvd
  handoff hold-fds --from /run/kv/holder --list
  handoff hold-fds --from-incumbent -- handoff drain --grace 25s -- handoff exec-successor kvd-v2";

/// Opens the sockets and hands them on.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("hold-fds");
    if let Some(path) = &args.from {
        if args.list {
            return holder::list(args, path);
        }
        if !args.forget.is_empty() {
            return holder::forget(args, path);
        }
    }
    let next = match open_next(args) {
        Ok(next) => next,
        Err(exit) => return Ok(exit),
    };
    let stray = fds::listen_pid_of_another();
    let mut chain = Chain::inherit()?;
    if args.inherit {
        chain.inherit_dialects()?;
        chain.check_listeners()?;
    }
    if args.from_incumbent {
        fetch_from_incumbent(args, &mut chain)?;
    }
    if let Some(path) = &args.from {
        holder::fetch(args, path, &mut chain)?;
    }
    for (name, old) in &args.name {
        chain.rename_listener(name, old)?;
    }
    for (name, socket) in listen::bind_missing(&args.listen, |name| chain.listener(name).is_some())? {
        chain.add_listener(&name, socket)?;
    }
    select(args, &mut chain)?;
    if chain.listeners().next().is_none() && args.serve.is_none() {
        return Err(exit::attempt(nothing(args, stray), "pass on any socket"));
    }
    if let Some(layout) = layout(args, &chain)? {
        chain.set_layout(layout);
    }
    if let Some(path) = &args.store {
        holder::store(args, path, &chain)?;
    }
    if let Some(path) = &args.serve {
        return holder::serve(args, path, chain);
    }
    Ok(next.map_or(Exit::Done, |next| next.exec("hold-fds", &chain)))
}

/// Opens the program that follows: it must, unless the sockets are left with a holder.
fn open_next(args: &Args) -> Result<Option<Opened>, Exit> {
    if args.serve.is_some() && !args.next.is_empty() {
        let detail = "no program follows --serve: this process stays".to_owned();
        return Err(exit::fatal("hold-fds", &exit::attempt(Error::Invalid { detail }, "stay as a holder")));
    }
    if args.serve.is_some() || (args.store.is_some() && args.next.is_empty()) {
        return Ok(None);
    }
    args.next.require("hold-fds", "the sockets live as long as they are open").map(Some)
}

/// Goes on as the holder that this process has been, if it was one.
pub fn resume() -> Option<Exit> {
    holder::resume()
}

/// Leaves out what was not asked for.
fn select(args: &Args, chain: &mut Chain) -> anyhow::Result<()> {
    if args.only.is_empty() {
        return Ok(());
    }
    args.only.iter().try_for_each(|name| expect_listener(chain, name))?;
    chain.retain(|role| match role {
        Role::Listener(name) => args.only.contains(name),
        _ => true,
    });
    Ok(())
}

fn expect_listener(chain: &Chain, name: &str) -> anyhow::Result<()> {
    if chain.listener(name).is_some() {
        return Ok(());
    }
    let known: Vec<&str> = chain.listeners().map(|(name, _)| name).collect();
    let detail = match known.as_slice() {
        [] => "there is none".to_owned(),
        known => format!("there are {}", known.join(", ")),
    };
    Err(exit::attempt(Error::Invalid { detail }, format!("find a listener {name}")))
}

/// Returns how the program is to be told, where that was said.
fn layout(args: &Args, chain: &Chain) -> anyhow::Result<Option<Layout>> {
    let mut layout = Layout { dialects: args.dialects.clone(), ..Layout::default() };
    let stdin = args.stdin.iter().map(|name| (name.clone(), 0));
    for (name, number) in args.fd.iter().cloned().chain(stdin) {
        expect_listener(chain, &name)?;
        layout.place(&name, number)?;
    }
    Ok(Some(layout).filter(|layout| *layout != Layout::default()))
}

fn dialects() -> impl TypedValueParser<Value = Dialect> {
    PossibleValuesParser::new(Dialect::NAMED.map(|(name, _)| name)).try_map(|name| name.parse::<Dialect>())
}

fn parse_name(text: &str) -> Result<(String, String), String> {
    let (name, old) = text.split_once('=').ok_or("expected NAME=OLD, such as http=3")?;
    fds::check_name(name).map_err(|e| e.to_string())?;
    Ok((name.to_owned(), old.to_owned()))
}

fn parse_place(text: &str) -> Result<(String, i32), String> {
    let (name, number) = text.split_once('=').ok_or("expected NAME=NUMBER, such as http=10")?;
    let number = number.parse().map_err(|_| format!("{number:?} is no descriptor: expected a number"))?;
    // What is wrong with it is found before any socket is bound.
    Layout::default().place(name, number).map_err(|e| e.to_string())?;
    Ok((name.to_owned(), number))
}

fn fetch_from_incumbent(args: &Args, chain: &mut Chain) -> anyhow::Result<()> {
    let control = control_path(args)?;
    let deadline = Instant::now() + args.timeout;
    let fetched =
        Control::connect(&control, "handoff hold-fds", deadline).and_then(|mut c| c.listeners(deadline));
    let listeners = match fetched {
        // Nobody serves, and what is to be bound then is known.
        Err(e) if is_absent(&e) && !args.listen.is_empty() => return Ok(()),
        fetched => fetched.context("fetch the incumbent's sockets")?,
    };
    for (name, socket) in listeners {
        if chain.listener(&name).is_none() {
            chain.add_listener(&name, socket)?;
        }
    }
    Ok(())
}

fn control_path(args: &Args) -> anyhow::Result<PathBuf> {
    let in_data_dir = || Some(PathBuf::from(std::env::var_os(DATA_DIR_VAR)?).join("control"));
    args.control.clone().or_else(in_data_dir).ok_or_else(|| {
        let detail = format!(
            "--from-incumbent needs the daemon's control socket: give --control PATH, or set {CONTROL_VAR}"
        );
        Error::Invalid { detail }.into()
    })
}

fn nothing(args: &Args, listen_pid: Option<u32>) -> Error {
    let detail = if let Some(pid) = listen_pid {
        format!(
            "LISTEN_FDS was meant for process {pid}, and this is {}: something started this process instead of becoming it, such as a shell \
             without exec",
            std::process::id()
        )
    } else if args.inherit {
        "nothing was inherited: there is no HANDOFF_FDS, no LISTEN_FDS and no other variable that names descriptors".to_owned()
    } else {
        "there is no socket to pass on: give --listen NAME=ADDRESS, --inherit or --from-incumbent".to_owned()
    };
    Error::Invalid { detail }
}
