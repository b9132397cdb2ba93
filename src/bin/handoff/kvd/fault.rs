//! Failures on request, for demonstrations and tests of what a handoff does about them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Die before anything else.
    CrashAtStart,
    /// Exit, with success, while the incumbent still serves.
    ExitWhileWarm,
    /// Never become ready to begin.
    HangWhileWarm,
    /// Die when the incumbent has sealed.
    CrashAfterBegin,
    /// Do nothing when the incumbent has sealed.
    HangAfterBegin,
    /// Take so long to open the data.
    SlowOpen(Duration),
    /// Report an older revision than was sealed.
    Stale,
    /// Report that the checks did not pass.
    Unhealthy,
    /// Die as soon as the handoff is granted.
    CrashWhenReady,
    /// Die after serving for so long.
    CrashAfterServing(Duration),
    /// Take so much longer to drain, having stopped.
    SlowDrain(Duration),
    /// Take so much longer to seal, having sealed.
    SlowSeal(Duration),
    /// Return an error from `drain`, having stopped nothing.
    FailDrain,
    /// Return an error from `seal`, having drained.
    FailSeal,
    /// Acknowledge the first SET without making it.
    LoseAWrite,
}

/// The names, for messages and help.
pub const NAMES: &str = "crash-at-start, exit-while-warm, hang-while-warm, crash-after-begin, hang-after-begin, \
    slow-open-ms=N, stale, unhealthy, crash-when-ready, crash-after-serving-ms=N, slow-drain-ms=N, slow-seal-ms=N, \
    fail-drain, fail-seal, lose-a-write";

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, millis) = match text.split_once('=') {
            Some((name, n)) => {
                (name, Some(n.parse().map_err(|_| format!("{n} is not a number of milliseconds"))?))
            }
            None => (text, None),
        };
        let fault = match (name, millis.map(Duration::from_millis)) {
            ("crash-at-start", None) => Self::CrashAtStart,
            ("exit-while-warm", None) => Self::ExitWhileWarm,
            ("hang-while-warm", None) => Self::HangWhileWarm,
            ("crash-after-begin", None) => Self::CrashAfterBegin,
            ("hang-after-begin", None) => Self::HangAfterBegin,
            ("slow-open-ms", Some(length)) => Self::SlowOpen(length),
            ("stale", None) => Self::Stale,
            ("unhealthy", None) => Self::Unhealthy,
            ("crash-when-ready", None) => Self::CrashWhenReady,
            ("crash-after-serving-ms", Some(length)) => Self::CrashAfterServing(length),
            ("slow-drain-ms", Some(length)) => Self::SlowDrain(length),
            ("slow-seal-ms", Some(length)) => Self::SlowSeal(length),
            ("fail-drain", None) => Self::FailDrain,
            ("fail-seal", None) => Self::FailSeal,
            ("lose-a-write", None) => Self::LoseAWrite,
            _ => return Err(format!("expected one of {NAMES}")),
        };
        Ok(fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CrashAtStart => f.write_str("crash-at-start"),
            Self::ExitWhileWarm => f.write_str("exit-while-warm"),
            Self::HangWhileWarm => f.write_str("hang-while-warm"),
            Self::CrashAfterBegin => f.write_str("crash-after-begin"),
            Self::HangAfterBegin => f.write_str("hang-after-begin"),
            Self::SlowOpen(length) => write!(f, "slow-open-ms={}", length.as_millis()),
            Self::Stale => f.write_str("stale"),
            Self::Unhealthy => f.write_str("unhealthy"),
            Self::CrashWhenReady => f.write_str("crash-when-ready"),
            Self::CrashAfterServing(length) => write!(f, "crash-after-serving-ms={}", length.as_millis()),
            Self::SlowDrain(length) => write!(f, "slow-drain-ms={}", length.as_millis()),
            Self::SlowSeal(length) => write!(f, "slow-seal-ms={}", length.as_millis()),
            Self::FailDrain => f.write_str("fail-drain"),
            Self::FailSeal => f.write_str("fail-seal"),
            Self::LoseAWrite => f.write_str("lose-a-write"),
        }
    }
}

/// Where a fault can strike on the way to serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// First of all.
    Start,
    /// Beside an incumbent that serves.
    Warm,
    /// After `begin`, before the data is opened.
    Begun,
    /// When the handoff was granted.
    Granted,
}

/// Lets the faults that belong to a point happen.
pub fn strike(faults: &[Fault], point: Point) {
    for fault in faults {
        match (point, fault) {
            (Point::Start, Fault::CrashAtStart)
            | (Point::Begun, Fault::CrashAfterBegin)
            | (Point::Granted, Fault::CrashWhenReady) => std::process::abort(),
            (Point::Warm, Fault::ExitWhileWarm) => std::process::exit(0),
            (Point::Warm, Fault::HangWhileWarm) | (Point::Begun, Fault::HangAfterBegin) => hang(),
            (Point::Begun, Fault::SlowOpen(length)) => std::thread::sleep(*length),
            _ => {}
        }
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Starts the clock of a fault that strikes while serving.
pub fn arm(faults: &[Fault]) {
    for fault in faults {
        if let Fault::CrashAfterServing(length) = *fault {
            std::thread::spawn(move || {
                std::thread::sleep(length);
                std::process::abort();
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood_and_printed_as_it_is_written() {
        for name in NAMES.split(", ").map(|name| name.replace("=N", "=250")) {
            assert_eq!(name.parse::<Fault>().map(|fault| fault.to_string()), Ok(name));
        }
        for wrong in ["", "stale=1", "slow-open-ms", "slow-open-ms=x", "nope"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }
}
