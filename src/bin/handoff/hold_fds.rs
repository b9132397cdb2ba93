use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use handoff::chain::{CONTROL_VAR, Chain, DATA_DIR_VAR};
use handoff::control::{Control, is_absent};
use handoff::error::Error;
use handoff::listen::{self, Listen};

use crate::exit::{self, Exit};
use crate::link::Next;
use crate::{duration, logging};

/// Open listening sockets and become the next program, which has them
///
/// A socket whose name came from elsewhere already is not bound: so the same command line starts the first daemon, and
/// its successor beside it.
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
  handoff hold-fds --from-incumbent -- handoff drain --grace 25s -- handoff exec-successor kvd-v2";

/// Opens the sockets and hands them on.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    logging::quietly("hold-fds");
    let next = match args.next.require("hold-fds", "the sockets live as long as they are open") {
        Ok(next) => next,
        Err(exit) => return Ok(exit),
    };
    let mut chain = Chain::inherit()?;
    if args.inherit {
        chain.check_listeners()?;
    }
    if args.from_incumbent {
        fetch_from_incumbent(args, &mut chain)?;
    }
    for (name, socket) in listen::bind_missing(&args.listen, |name| chain.listener(name).is_some())? {
        chain.add_listener(&name, socket)?;
    }
    if chain.listeners().next().is_none() {
        return Err(exit::attempt(nothing(args), "pass on any socket"));
    }
    Ok(next.exec("hold-fds", &chain))
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

fn nothing(args: &Args) -> Error {
    let detail = if args.inherit {
        "nothing was inherited: no HANDOFF_FDS, and no LISTEN_FDS for this process".to_owned()
    } else {
        "there is no socket to pass on: give --listen NAME=ADDRESS, --inherit or --from-incumbent".to_owned()
    };
    Error::Invalid { detail }
}
