//! How a swap ended.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use handoff::proto::driver::{Outcome, Refusal};
use handoff::proto::wire::PhaseMark;
use handoff::supervisor::{HandoffOutcome, Measured};
use serde::{Serialize, Serializer};

use crate::duration::{show_ms, show_us};
use crate::exit::Exit;
use crate::{journal, out};

/// How it ended, for people on one line and for programs as an object.
#[derive(Serialize)]
pub struct Summary {
    /// `committed`, `rolled-back`, `refused`, `nothing-serving` or `undecided`.
    outcome: &'static str,
    committed: bool,
    #[serde(serialize_with = "as_number")]
    pub exit: Exit,
    handoff: Option<String>,
    reason: Option<String>,
    /// The reason in a word, where it was rolled back.
    reason_kind: Option<String>,
    /// The phase that it was in when it was undone.
    phase: Option<String>,
    binary: Option<PathBuf>,
    args: Vec<String>,
    pid: Option<u32>,
    drain_us: Option<u64>,
    seal_us: Option<u64>,
    ready_us: Option<u64>,
    bake_us: Option<u64>,
    conns_closed: u32,
    #[serde(flatten)]
    measured: Measured,
}

impl Summary {
    pub fn of(ended: &HandoffOutcome) -> Self {
        let measured = ended.measured.clone();
        let at = |name: &str| at(&measured.phases, name);
        let between = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
        let baked = at("baking").map(|_| measured.serving_us);
        Self {
            outcome: ended.outcome.name(),
            committed: ended.committed,
            exit: Exit::for_outcome(&ended.outcome),
            handoff: Some(ended.handoff_id.clone()),
            reason: ended.abort_reason.as_ref().map(|reason| out::one_line(&reason.to_string())),
            reason_kind: match &ended.outcome {
                Outcome::RolledBack(reason) => Some(reason.kind().to_owned()),
                _ => None,
            },
            phase: undone_in(&measured.phases).filter(|_| !ended.committed),
            binary: ended.binary.clone(),
            args: ended.args.clone(),
            pid: ended.pid,
            drain_us: between(at("draining"), at("sealing")),
            seal_us: between(at("sealing"), at("deciding")),
            ready_us: between(at("deciding"), measured.serving_us),
            bake_us: baked.and_then(|since| between(since, at("done"))),
            conns_closed: if ended.committed { measured.conns_at_drain } else { 0 },
            measured,
        }
    }

    pub fn refused(refusal: &Refusal) -> Self {
        let outcome = Outcome::Refused(refusal.clone());
        Self {
            outcome: outcome.name(),
            committed: false,
            exit: Exit::Refused,
            handoff: None,
            reason: Some(journal::phrase(&outcome)),
            reason_kind: None,
            phase: None,
            binary: None,
            args: vec![],
            pid: None,
            drain_us: None,
            seal_us: None,
            ready_us: None,
            bake_us: None,
            conns_closed: 0,
            measured: Measured::default(),
        }
    }

    /// Whether nothing was begun.
    pub fn is_refusal(&self) -> bool {
        self.outcome == "refused"
    }

    pub fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or("the reason is not known")
    }

    /// Returns the one line for people.
    pub fn line(&self) -> String {
        let id = self.handoff.as_deref().unwrap_or("-");
        let reason = self.reason();
        match self.outcome {
            "committed" => self.committed_line(id),
            "rolled-back" => {
                let phase = self.phase.as_deref().unwrap_or("beginning");
                let took = show_ms(self.measured.total_ms);
                format!("rolled back {id} while {phase}, after {took}: {reason}; the incumbent serves")
            }
            "retired" => format!("retired {id}: the data is sealed, and nobody serves"),
            "nothing-serving" => format!("nothing serves after {id}: {reason}"),
            _ => format!("undecided {id}: {reason}"),
        }
    }

    /// Says it, on standard output or for a refusal on standard error, and returns the exit code.
    ///
    /// # Errors
    ///
    /// Standard output cannot be written to.
    pub fn report(&self, command: &str, json: bool) -> anyhow::Result<Exit> {
        if self.is_refusal() {
            let attempt =
                if ["swap", "trigger"].contains(&command) { "swap the daemon" } else { "take the lease" };
            out::say(command, "fatal", &format!("unable to {attempt}: {}", self.reason()));
        }
        // Whoever reads it may be gone; how it ended is in the exit code too.
        let _ = match (json, self.is_refusal()) {
            (true, _) => out::json(self)?,
            (false, true) => ControlFlow::Continue(()),
            (false, false) => out::line(&self.line())?,
        };
        Ok(self.exit)
    }

    fn committed_line(&self, id: &str) -> String {
        let m = &self.measured;
        let mut line = format!("committed {id}");
        let phases = [("drain", self.drain_us), ("seal", self.seal_us), ("ready", self.ready_us)];
        let known: Vec<String> =
            phases.iter().filter_map(|(name, us)| us.map(|us| format!("{name} {}", show_us(us)))).collect();
        // Writing to a string cannot fail.
        let _ = match m.gap_us {
            Some(gap) => write!(line, " gap {} ({})", show_us(gap), known.join(" ")),
            None => write!(line, " gap unknown ({})", known.join(" ")),
        };
        if let Some(bake) = self.bake_us {
            let _ = write!(line, " bake {}", show_us(bake));
        }
        if let (Some(peak), Some(limit)) = (m.queue_peak, m.queue_limit) {
            let _ = write!(line, " queue peak {peak}/{limit}");
        }
        if let Some(overflows) = m.overflows {
            let _ = write!(line, " overflows {overflows}");
        }
        let _ = write!(line, " connections closed {}", self.conns_closed);
        if m.conns_remaining > 0 {
            let _ = write!(line, " ({} of them in use)", m.conns_remaining);
        }
        line
    }
}

fn at(phases: &[PhaseMark], name: &str) -> Option<u64> {
    phases.iter().find(|mark| mark.phase == name).map(|mark| mark.at_us)
}

fn undone_in(phases: &[PhaseMark]) -> Option<String> {
    let ending = ["aborting", "dismissing", "inquiring", "done"];
    phases.iter().rev().map(|mark| &mark.phase).find(|name| !ending.contains(&name.as_str())).cloned()
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference to the field")]
fn as_number<S: Serializer>(exit: &Exit, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_u8(*exit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_names_the_phase_that_was_undone() {
        let mark = |phase: &str| PhaseMark { phase: phase.to_owned(), at_us: 1 };
        let phases = ["preparing", "warming", "draining", "aborting", "done"].map(mark);
        assert_eq!(undone_in(&phases).as_deref(), Some("draining"));
    }
}
