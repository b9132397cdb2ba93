//! What a holder is asked for, and what it takes to be one.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use handoff::chain::Chain;
use handoff::control::is_absent;
use handoff::error::Error;
use handoff::fds::Role;
use handoff::holder::{self, Allowed, Client, Held, Setup};
use handoff::listen;

use super::Args;
use crate::exit::{self, Exit};
use crate::{link, out};

/// Goes on as the holder that this process has been, before anything else is done in it.
pub fn resume() -> Option<Exit> {
    let said = holder::resume(|level, text| out::say("hold-fds", level, text))?;
    Some(match said {
        Ok(()) => Exit::Done,
        Err(e) => exit::fatal("hold-fds", &exit::attempt(e, "hold sockets")),
    })
}

/// Prints what a holder has.
pub fn list(args: &Args, path: &Path) -> anyhow::Result<Exit> {
    let deadline = Instant::now() + args.timeout;
    let held = Client::connect(path, deadline).and_then(|mut client| client.list(deadline));
    let held = held.context("list what is held")?;
    let _ = if args.json {
        out::json(&held)?
    } else {
        let line = |held: &Held| format!("{} {} {}", held.name, held.kind, held.address);
        out::text(&held.iter().map(|held| out::one_line(&line(held)) + "\n").collect::<String>())?
    };
    Ok(Exit::Done)
}

/// Makes a holder close sockets.
pub fn forget(args: &Args, path: &Path) -> anyhow::Result<Exit> {
    let deadline = Instant::now() + args.timeout;
    let mut client = Client::connect(path, deadline).context("reach the holder")?;
    for name in &args.forget {
        client.forget(name, deadline).with_context(|| format!("remove {name}"))?;
    }
    Ok(Exit::Done)
}

/// Fetches from a holder what is not there yet.
pub fn fetch(args: &Args, path: &Path, chain: &mut Chain) -> anyhow::Result<()> {
    let deadline = Instant::now() + args.timeout;
    let mut client = match Client::connect(path, deadline) {
        // Nobody holds anything, and what is to be bound then is known.
        Err(e) if is_absent(&e) && !args.listen.is_empty() => return Ok(()),
        client => client.context("reach the holder")?,
    };
    let names: Vec<String> = if args.only.is_empty() {
        client.list(deadline).context("list what is held")?.into_iter().map(|held| held.name).collect()
    } else {
        args.only.clone()
    };
    let missing: Vec<String> = names.into_iter().filter(|name| chain.listener(name).is_none()).collect();
    for (name, socket) in client.give(&missing, deadline).context("fetch the holder's sockets")? {
        chain.add_listener(&name, socket)?;
    }
    Ok(())
}

/// Gives copies of all sockets to a holder.
pub fn store(args: &Args, path: &Path, chain: &Chain) -> anyhow::Result<()> {
    let deadline = Instant::now() + args.timeout;
    let mut client = Client::connect(path, deadline).context("reach the holder")?;
    for (name, socket) in chain.listeners() {
        client.store(name, socket, args.replace, deadline).with_context(|| format!("store {name}"))?;
    }
    Ok(())
}

/// Becomes a holder. Returns only if that fails.
pub fn serve(args: &Args, path: &Path, mut chain: Chain) -> anyhow::Result<Exit> {
    let names: Vec<String> = chain.listeners().map(|(name, _)| name.to_owned()).collect();
    let mut sockets: Vec<(String, OwnedFd)> = vec![];
    for name in names {
        let socket = chain.take(&Role::Listener(name.clone()));
        sockets.extend(socket.map(|socket| (name, socket)));
    }
    if !chain.is_empty() {
        let detail = "this chain has a lock or a handoff in progress, which would stay as long as the holder does: start \
                      the holder outside of it";
        return Err(exit::attempt(Error::Invalid { detail: detail.to_owned() }, "stay as a holder"));
    }
    let setup = Setup {
        path: path.to_owned(),
        give: allowed(&args.allow)?,
        store: allowed(&args.allow_store)?,
        ready_fd: args.ready_fd,
        program: link::own_program()?,
    };
    Err(exit::attempt(holder::start(setup, &sockets), format!("hold sockets at {}", path.display())))
}

fn allowed(who: &[String]) -> anyhow::Result<Allowed> {
    let mut allowed = Allowed::default();
    for who in who {
        match who.strip_prefix(':') {
            Some(group) => allowed.gids.push(listen::group_number(group)?),
            None => allowed.uids.push(listen::user_number(who)?),
        }
    }
    Ok(allowed)
}
