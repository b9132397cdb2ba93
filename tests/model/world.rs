//! What there is: processes, sockets, the lock, the record, the data. Small, flat and without a heap.

use handoff::proto::driver::Order;

/// The daemon that serves in the beginning.
pub const FIRST: usize = 0;
/// The daemon that a supervisor starts after a crash.
pub const RESTARTED: usize = 3;
pub const DAEMONS: usize = 4;
pub const DRIVERS: usize = 2;

/// The successor that a driver starts.
pub fn successor_of(driver: usize) -> usize {
    1 + driver
}

/// The driver that started a successor.
pub fn driver_of(successor: usize) -> usize {
    successor - 1
}

/// A bounded queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct List<T: Copy, const N: usize>([Option<T>; N]);

impl<T: Copy, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self([None; N])
    }
}

impl<T: Copy, const N: usize> List<T, N> {
    pub fn push(&mut self, item: T) {
        let free = self.0.iter().position(Option::is_none).expect("the bound of a queue is never reached");
        self.0[free] = Some(item);
    }

    pub fn pop(&mut self) -> Option<T> {
        let first = self.0[0].take();
        self.0.rotate_left(1);
        first
    }

    pub fn pop_last(&mut self) -> Option<T> {
        let last = self.0.iter().rposition(Option::is_some)?;
        self.0[last].take()
    }

    pub fn front(&self) -> Option<T> {
        self.0[0]
    }

    pub fn is_empty(&self) -> bool {
        self.0[0].is_none()
    }

    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.0.iter().flatten().copied()
    }

    pub fn clear(&mut self) {
        self.0 = [None; N];
    }
}

/// An actor that can be killed and stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    Daemon(u8),
    Driver(u8),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Life {
    #[default]
    Absent,
    Running,
    /// By SIGSTOP; perhaps for good.
    Stopped,
    Gone(End),
}

/// Why a process is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// A fault killed it, or it was killed because a fault had stopped it or failed it.
    Fault,
    /// It left, or was killed by its peers, and another one was there to serve or had told it to go.
    Relieved,
    /// It left, or was killed by its peers, and nobody was there.
    Deserted,
}

/// What a successor reports that it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opening {
    pub healthy: bool,
    pub revision: u8,
}

/// A message, on the lease or on the channel between a driver and its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Msg {
    // To the incumbent.
    Prepare,
    Drain,
    Seal,
    Retire,
    Abort,
    Attach,
    Ready(Opening),
    Serving,
    Done,
    SteppedDown,
    // From the incumbent.
    Prepared(u8),
    Busy,
    Drained,
    Sealed(u8),
    Granted,
    Finalize,
    StepDown,
    Aborted,
    // To the successor, over the channel; `Begin` carries the lease, and the revision that was sealed.
    Begin(u8),
    Dismissed,
    // To the driver, over the channel.
    Waiting,
    ToldServing,
    ToldDone,
    ToldFailed,
}

/// How the handoff ended, as those who watch are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Word {
    Committed,
    RolledBack,
    Retired,
    Superseded,
    NothingServing,
}

/// A step of a process that has yet to be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Do {
    Send(Msg),
    Tell(Msg),
    CloseLease,
    /// From an incumbent, on the control connection of this driver.
    Reply(u8, Msg),
    HangUp(u8),
    Unlock,
    TryLock,
    /// The owner record, into the page cache.
    Write(Standing),
    Fence,
    FenceIncumbent,
    BindControl,
    /// To this driver, which watches.
    Announce(u8, Word),
    Call(Hook),
    Serve,
    Connect,
    Spawn,
    Become,
    PassLease,
    TellDismissed,
    KillSuccessor,
    Inquire,
    Cancel,
    Arm(u8),
    Disarm(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    Trial,
    Final,
}

/// What runs beside the machine and returns later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    Drain,
    Seal,
    Resume,
    /// Waiting for a killed tree to be gone.
    Fence,
    Open,
    /// The owner record, to the disk.
    Sync,
    /// Drain, seal and unlock, of a successor on trial.
    Stop,
}

/// The run of an incumbent's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    pub lease: u8,
    pub bake: bool,
    pub sealed: Option<u8>,
    pub attached: bool,
}

/// A machine, its phase as a code, without the reasons: no row depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Nobody,
    /// `from` is the phase in which the handoff was undone, until the rollback is complete.
    Incumbent {
        phase: u8,
        generation: u8,
        run: Option<Run>,
        from: u8,
    },
    Successor {
        phase: u8,
        expected: u8,
        warm: bool,
        sealed: Option<u8>,
        unfit: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Daemon {
    pub life: Life,
    pub role: Role,
    pub program: u8,
    pub todo: List<Do, 8>,
    pub hook: Option<Hook>,
    pub timers: u8,
    /// It accepts connections and writes.
    pub serving: bool,
    /// A client waits for the acknowledgement of a write.
    pub in_flight: bool,
    /// The last revision that it knows of.
    pub view: u8,
    /// The program has yet to say that it serves.
    pub serve_due: bool,
    /// A fault stopped it or failed it once.
    pub faulty: bool,
    /// The incumbent granted it, or was seen dead by it.
    pub granted: bool,
    /// The incumbent told it to go, or it decided to while somebody else was there.
    pub told: bool,
    /// What it said that it opened is true, and is all there was.
    pub opened_all: bool,
}

/// A connection to a control socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The daemon at the other end.
    pub server: u8,
    /// That end is open in that daemon.
    pub server_open: bool,
    /// The driver has a copy of its end.
    pub driver: bool,
    /// The successor has a copy of its end. A copy in flight is a `Begin` in the channel.
    pub successor: bool,
    pub to_server: List<Msg, 5>,
    pub to_client: List<Msg, 5>,
}

/// The channel between a driver and its successor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Channel {
    pub to_successor: List<Msg, 3>,
    pub to_driver: List<Msg, 3>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Driver {
    pub life: Life,
    pub phase: u8,
    pub order: Order,
    pub bake: bool,
    pub todo: List<Do, 8>,
    pub timers: u8,
    /// The generation in `prepared`.
    pub generation: u8,
    pub inquiring: bool,
    /// The revision in `sealed`.
    pub sealed: u8,
    pub verdict: Option<Word>,
    /// A request to undo is on its way over the watching connection.
    pub cancel: bool,
    /// The incumbent went back to serving after it had let go of the lock for this handoff.
    pub undone: bool,
    pub lease: Lease,
    pub channel: Channel,
}

/// An owner record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    pub generation: u8,
    pub program: u8,
    pub previous: u8,
    pub standing: Standing,
}

impl Record {
    /// The program that starts after a crash.
    pub fn starts(&self) -> u8 {
        match self.standing {
            Standing::Final => self.program,
            Standing::Trial => self.previous,
        }
    }
}

/// The data directory. Revisions count acknowledged writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    pub acknowledged: u8,
    pub written: u8,
    pub synced: u8,
    /// The program whose format the data is in.
    pub format: u8,
    /// The program that last made the data its own.
    pub owner: u8,
    /// Which drivers' successors made the data their own.
    pub made_final: u8,
}

/// A process that inherited descriptors and does nothing with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Helper {
    pub of: Who,
    /// Client ends of leases, a bit for each driver.
    pub clients: u8,
    /// Server ends.
    pub servers: u8,
    /// The description of the lock that this daemon opened.
    pub lock: Option<u8>,
}

/// Faults that are still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    pub kills: u8,
    pub stops: u8,
    pub helpers: u8,
    pub drivers: u8,
    /// Hooks and syncs that fail, successors that cannot be started.
    pub errors: u8,
    /// Successors that are unhealthy or open stale data.
    pub bad: u8,
    /// What a person says: cancel, abort, commit.
    pub words: u8,
    pub writes: u8,
    pub restarts: u8,
}

/// What must never happen, once it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Broken {
    WriteWithoutLock,
    WriteLost,
    GrantUnfounded,
    HealthyKilled,
    LateServes,
    Ungranted,
    ImpossibleRow,
    GaveUpUntold,
    FalseVerdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub daemons: [Daemon; DAEMONS],
    pub drivers: [Driver; DRIVERS],
    /// Whose open file description has the lock.
    pub lock: Option<u8>,
    /// The newest that is on disk, and what was written after it.
    pub records: List<Record, 4>,
    pub disk: Disk,
    /// Where the control path leads.
    pub path: u8,
    pub helper: Option<Helper>,
    pub budget: Budget,
    pub broken: u16,
}

impl Daemon {
    pub fn absent() -> Self {
        Self {
            life: Life::Absent,
            role: Role::Nobody,
            program: 0,
            todo: List::default(),
            hook: None,
            timers: 0,
            serving: false,
            in_flight: false,
            view: 0,
            serve_due: false,
            faulty: false,
            granted: false,
            told: false,
            opened_all: false,
        }
    }

    pub fn alive(&self) -> bool {
        matches!(self.life, Life::Running | Life::Stopped)
    }

    pub fn idle(&self) -> bool {
        self.life == Life::Running && self.todo.is_empty()
    }

    pub fn armed(&self, timer: u8) -> bool {
        self.timers & (1 << timer) != 0
    }
}

impl Driver {
    pub fn absent(order: Order, bake: bool) -> Self {
        Self {
            life: Life::Absent,
            phase: 0,
            order,
            bake,
            todo: List::default(),
            timers: 0,
            generation: 0,
            inquiring: false,
            sealed: 0,
            verdict: None,
            cancel: false,
            undone: false,
            lease: Lease::default(),
            channel: Channel::default(),
        }
    }

    pub fn idle(&self) -> bool {
        self.life == Life::Running && self.todo.is_empty()
    }

    pub fn armed(&self, timer: u8) -> bool {
        self.timers & (1 << timer) != 0
    }

    /// Whether the lease is on its way to the successor.
    pub fn lease_in_flight(&self) -> bool {
        self.channel.to_successor.iter().any(|msg| matches!(msg, Msg::Begin(_)))
    }
}

impl State {
    pub fn new(order: Order, bake: bool, budget: Budget) -> Self {
        let mut daemons = [Daemon::absent(); DAEMONS];
        for (i, daemon) in daemons.iter_mut().enumerate() {
            daemon.program = i as u8 % 3;
        }
        daemons[FIRST].life = Life::Running;
        daemons[FIRST].role = Role::Incumbent { phase: 0, generation: 1, run: None, from: 0 };
        daemons[FIRST].serving = true;
        daemons[FIRST].view = 1;
        let mut records = List::default();
        records.push(Record { generation: 1, program: 0, previous: 0, standing: Standing::Final });
        Self {
            daemons,
            drivers: [Driver::absent(order, bake); DRIVERS],
            lock: Some(0),
            records,
            disk: Disk { acknowledged: 1, written: 1, synced: 1, format: 0, owner: 0, made_final: 0 },
            path: 0,
            helper: None,
            budget,
            broken: 0,
        }
    }

    pub fn newest(&self) -> Record {
        self.records.iter().last().expect("a data directory that is in use has a record")
    }

    pub fn mark(&mut self, broken: Broken) {
        self.broken |= 1 << broken as u8;
    }

    pub fn is_broken(&self, broken: Broken) -> bool {
        self.broken & (1 << broken as u8) != 0
    }

    /// Whether any copy of the client's end is open.
    pub fn client_open(&self, d: usize) -> bool {
        let driver = &self.drivers[d];
        driver.lease.driver
            || driver.lease.successor
            || driver.lease_in_flight()
            || self.helper.is_some_and(|h| h.clients & (1 << d) != 0)
    }

    /// Whether any copy of the incumbent's end is open.
    pub fn server_open(&self, d: usize) -> bool {
        self.drivers[d].lease.server_open || self.helper.is_some_and(|h| h.servers & (1 << d) != 0)
    }

    /// Whether a process that only inherited the lock's description keeps it locked.
    pub fn lock_leaked(&self) -> bool {
        self.lock.is_some_and(|owner| !self.daemons[owner as usize].alive())
    }
}
