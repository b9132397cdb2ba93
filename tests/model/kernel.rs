//! The kernel's part, and a few things of the shells: sockets, the lock, files, deaths.

use handoff::proto::incumbent::{self};
use handoff::proto::record;
use handoff::proto::recovery::{self, Facts};

use crate::moves::*;
use crate::pack::{self};
use crate::world::*;

pub fn send_to_client(s: &mut State, d: usize, msg: Msg) {
    if s.client_open(d) && s.drivers[d].lease.server_open {
        s.drivers[d].lease.to_client.push(msg);
    }
}

pub fn send_to_server(s: &mut State, d: usize, msg: Msg) {
    if s.drivers[d].lease.server_open {
        s.drivers[d].lease.to_server.push(msg);
    }
}

pub fn tell_driver(s: &mut State, d: usize, msg: Msg) {
    if matches!(s.drivers[d].life, Life::Running | Life::Stopped) {
        s.drivers[d].channel.to_driver.push(msg);
    }
}

pub fn tell_successor(s: &mut State, d: usize, msg: Msg) {
    let successor = &s.daemons[successor_of(d)];
    if successor.alive() && matches!(successor.role, Role::Successor { .. }) {
        s.drivers[d].channel.to_successor.push(msg);
    }
}

/// Everybody who watches is told; a driver heeds only what is said of its own handoff.
pub fn announce(s: &mut State, d: usize, word: Word) {
    let driver = &mut s.drivers[d];
    if matches!(driver.life, Life::Running | Life::Stopped) && driver.phase != 0 {
        driver.verdict = Some(word);
    }
}

pub fn found(s: &State) -> incumbent::Found {
    let newest = s.newest();
    let standing = match newest.standing {
        Standing::Trial => record::Standing::Trial,
        Standing::Final => record::Standing::Final,
    };
    incumbent::Found { generation: newest.generation.into(), standing }
}

/// Into the page cache. A daemon keeps its generation when its trial becomes final.
pub fn write_record(s: &mut State, i: usize, standing: Standing) {
    let newest = s.newest();
    let program = s.daemons[i].program;
    let record = match s.daemons[i].role {
        Role::Incumbent { generation, .. } => {
            Record { generation, program, previous: newest.program, standing }
        }
        _ if newest.program == program => Record { standing, ..newest },
        _ => Record { generation: newest.generation + 1, program, previous: newest.program, standing },
    };
    s.records.push(record);
    if standing == Standing::Final && matches!(s.daemons[i].role, Role::Successor { .. }) {
        if !s.daemons[i].opened_all {
            s.mark(Broken::GrantUnfounded);
        }
        s.disk.owner = program;
        s.disk.made_final |= 1 << driver_of(i);
    }
}

pub fn sync_record(s: &mut State) {
    let newest = s.newest();
    s.records.clear();
    s.records.push(newest);
}

pub fn promote(s: &mut State, i: usize) {
    let d = driver_of(i);
    let generation = s.newest().generation;
    let daemon = &mut s.daemons[i];
    daemon.role = Role::Incumbent { phase: 0, generation, run: None, from: 0 };
    daemon.timers = 0;
    s.drivers[d].lease.successor = false;
    s.drivers[d].channel.to_successor.clear();
}

pub fn spawn(s: &mut State, d: usize, early: bool) {
    let i = successor_of(d);
    let expected = s.drivers[d].generation;
    // A later program reads what an earlier one wrote.
    let started = (0..DRIVERS).filter(|other| s.daemons[successor_of(*other)].life != Life::Absent).count();
    s.daemons[i] = Daemon::absent();
    s.daemons[i].program = 1 + started as u8;
    s.daemons[i].life = Life::Running;
    s.daemons[i].role = Role::Successor { phase: 0, expected, warm: false, sealed: None, unfit: false };
    if early {
        s.daemons[i].role = Role::Successor { phase: 1, expected, warm: true, sealed: None, unfit: false };
        s.daemons[i].todo.push(Do::TryLock);
    }
}

/// The driver's process becomes the successor: `begin` and the lease are in the channel, whose other end is closed.
///
/// One step: until the program is executed, both ends and the lease are in one process, and close with it.
pub fn become_successor(s: &mut State, d: usize) {
    spawn(s, d, false);
    if s.drivers[d].lease.driver {
        tell_successor(s, d, Msg::Begin(s.drivers[d].sealed));
    }
    end(s, Who::Driver(d as u8), End::Relieved);
}

pub fn warms_up(s: &mut State, d: usize) {
    if let Role::Successor { warm, .. } = &mut s.daemons[successor_of(d)].role {
        *warm = true;
    }
    s.daemons[successor_of(d)].timers |= 1 << SUCCESSOR_SILENCE;
    tell_driver(s, d, Msg::Waiting);
}

pub fn facts(s: &State, d: usize) -> Facts {
    use recovery::{Answer, Who as Party};
    let daemon = &s.daemons[s.path as usize];
    let who = match s.path as usize {
        path if path == s.drivers[d].lease.server as usize => Party::Incumbent,
        path if path == successor_of(d) => Party::Successor,
        _ => Party::Other,
    };
    let busy = match daemon.role {
        Role::Incumbent { phase, .. } => phase != 0,
        _ => true,
    };
    let answer = (daemon.life == Life::Running).then_some(Answer { who, busy });
    let standing = found(s).standing;
    Facts { answer, locked: s.lock.is_some(), record: Some(standing) }
}

pub fn fork(s: &mut State, who: Who) {
    s.budget.helpers -= 1;
    let bits = |held: &dyn Fn(&Driver, usize) -> bool| {
        (0..DRIVERS).filter(|d| held(&s.drivers[*d], *d)).fold(0, |bits, d| bits | 1 << d)
    };
    let helper = match who {
        Who::Driver(me) => {
            let clients = bits(&|driver, d| d == me as usize && driver.lease.driver);
            Helper { of: who, clients, servers: 0, lock: None }
        }
        Who::Daemon(me) => {
            let clients = bits(&|driver, d| successor_of(d) == me as usize && driver.lease.successor);
            let servers = bits(&|driver, _| driver.lease.server == me && driver.lease.server_open);
            let opened = s.lock == Some(me) || matches!(s.daemons[me as usize].role, Role::Incumbent { .. });
            Helper { of: who, clients, servers, lock: opened.then_some(me) }
        }
    };
    s.helper = Some(helper);
}

pub fn end_helper(s: &mut State) {
    let Some(helper) = s.helper.take() else { return };
    if helper.lock.is_some_and(|owner| s.lock == Some(owner) && !s.daemons[owner as usize].alive()) {
        s.lock = None;
    }
}

pub fn kill_helper_of(s: &mut State, i: usize) {
    if s.helper.is_some_and(|helper| helper.of == Who::Daemon(i as u8)) {
        end_helper(s);
    }
}

/// One of the parties kills another.
pub fn kill(s: &mut State, i: usize) {
    if !s.daemons[i].alive() {
        return;
    }
    let why = if s.daemons[i].faulty { End::Fault } else { heir(s, i) };
    end(s, Who::Daemon(i as u8), why);
}

/// Whether somebody is left who may serve when this daemon goes.
pub fn heir(s: &State, i: usize) -> End {
    let others = s.daemons.iter().enumerate().any(|(j, daemon)| j != i && daemon.alive());
    if others { End::Relieved } else { End::Deserted }
}

pub fn incumbent_end(s: &State, i: usize) -> End {
    let Role::Incumbent { phase, run, from, .. } = s.daemons[i].role else { return End::Deserted };
    let Some(run) = run else { return End::Deserted };
    let d = run.lease as usize;
    let made_final = s.disk.made_final & (1 << d) != 0;
    let expected = !run.bake || from == 10;
    let faulted = s.daemons[successor_of(d)].life == Life::Gone(End::Fault);
    match phase {
        17 if made_final => End::Relieved,
        // It was asked to.
        21 => End::Relieved,
        // The successor died with the data its own; whoever starts what died finds its program in the record.
        18 if heir(s, i) == End::Relieved => End::Relieved,
        18 if made_final && expected && faulted => End::Relieved,
        // Somebody else has the lock; if that is a process that only inherited it, see the known limits.
        19 if s.lock_leaked() => End::Relieved,
        19 => heir(s, i),
        20 if s.daemons[i].faulty => End::Fault,
        _ => End::Deserted,
    }
}

pub fn successor_end(s: &State, i: usize) -> End {
    let Role::Successor { phase, .. } = s.daemons[i].role else { return End::Deserted };
    let daemon = &s.daemons[i];
    match phase {
        _ if daemon.faulty => End::Fault,
        _ if daemon.told => End::Relieved,
        // A process that only inherited the lock keeps it: named in the known limits.
        pack::LOCK_HELD if s.lock_leaked() => End::Relieved,
        // Somebody came later and owned the data.
        pack::TOO_LATE => End::Relieved,
        _ => heir(s, i),
    }
}

/// Ends a process: the kernel closes what it had open.
pub fn end(s: &mut State, who: Who, why: End) {
    match who {
        Who::Daemon(i) => end_daemon(s, i as usize, why),
        Who::Driver(d) => {
            let driver = &mut s.drivers[d as usize];
            driver.life = Life::Gone(why);
            driver.todo.clear();
            driver.timers = 0;
            driver.inquiring = false;
            driver.sealed = 0;
            driver.verdict = None;
            driver.lease.driver = false;
            driver.channel.to_driver.clear();
        }
    }
}

pub fn end_daemon(s: &mut State, i: usize, why: End) {
    let program = s.daemons[i].program;
    s.daemons[i] = Daemon { life: Life::Gone(why), program, ..Daemon::absent() };
    if s.lock == Some(i as u8) && s.helper.is_none_or(|h| h.lock != Some(i as u8)) {
        s.lock = None;
    }
    for d in 0..DRIVERS {
        if s.drivers[d].lease.server == i as u8 {
            s.drivers[d].lease.server_open = false;
            s.drivers[d].cancel = false;
        }
    }
    if i != FIRST && i != RESTARTED {
        let driver = &mut s.drivers[driver_of(i)];
        driver.lease.successor = false;
        driver.channel.to_successor.clear();
    }
}

/// Takes back the last message that a process has sent and nobody has read.
pub fn lose_last(s: &mut State, who: Who) -> bool {
    let mut lost = false;
    match who {
        Who::Driver(d) => {
            let driver = &mut s.drivers[d as usize];
            if driver.lease.driver && driver.phase < pack::DECIDING {
                lost |= driver.lease.to_server.pop_last().is_some();
            }
            lost |= driver.channel.to_successor.pop_last().is_some();
        }
        Who::Daemon(i) => {
            for driver in s.drivers.iter_mut().filter(|driver| driver.lease.server == i) {
                lost |= driver.lease.to_client.pop_last().is_some() | driver.verdict.take().is_some();
            }
            let i = i as usize;
            if i != FIRST && i != RESTARTED {
                let driver = &mut s.drivers[driver_of(i)];
                if driver.lease.successor {
                    lost |= driver.lease.to_server.pop_last().is_some();
                }
                lost |= driver.channel.to_driver.pop_last().is_some();
            }
        }
    }
    lost
}

/// Forgets what nobody can read any more, so that states that behave alike are one.
pub fn tidy(s: &mut State) {
    for d in 0..DRIVERS {
        if !s.drivers[d].lease.server_open {
            s.drivers[d].lease.to_server.clear();
        }
        if !s.client_open(d) {
            s.drivers[d].lease.to_client.clear();
        }
    }
}
