//! What a restarted driver, or anybody who must know, concludes from what is true now.

use super::Reason;
use super::driver::Outcome;
use super::record::Standing;

/// What was found when the control path, the lock file and the record were asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// What answered on the control path.
    pub answer: Option<Answer>,
    /// Whether anybody holds the lock.
    pub locked: bool,
    /// What the owner record says, where there is one.
    pub record: Option<Standing>,
}

/// What a daemon answered on its control path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// Which of the handoff's parties it is, by process id, start time and boot id.
    pub who: Who,
    /// Whether it is in the middle of a handoff, or serves on trial.
    pub busy: bool,
}

/// A party to a handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The one that served when it began.
    Incumbent,
    /// The one that was to take over.
    Successor,
    /// Somebody who came later.
    Other,
}

/// What follows from the facts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Conclusion {
    /// The handoff has ended in this way.
    Ended(Outcome),
    /// It is still going on: ask again.
    GoingOn,
    /// Nobody serves. The program to start is the record's owner if it is final, and the one before if it is a trial.
    StartFrom(Standing),
    /// Nobody serves, and no record says what to start.
    StartAnything,
}

/// Returns what follows from the facts.
pub fn conclude(facts: &Facts) -> Conclusion {
    match (facts.answer, facts.locked, facts.record) {
        (Some(Answer { busy: true, .. }), _, _) => Conclusion::GoingOn,
        (Some(Answer { who: Who::Incumbent, .. }), _, _) => {
            Conclusion::Ended(Outcome::RolledBack(Reason::LeaseLost))
        }
        (Some(Answer { who: Who::Successor, .. }), _, _) => Conclusion::Ended(Outcome::Committed),
        (Some(Answer { who: Who::Other, .. }), _, _) => {
            Conclusion::Ended(Outcome::Undecided("a process that came later serves".to_owned()))
        }
        // It is on its way in or out: it opens data, or does not answer.
        (None, true, _) => Conclusion::GoingOn,
        (None, false, Some(standing)) => Conclusion::StartFrom(standing),
        (None, false, None) => Conclusion::StartAnything,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_outweighs_the_lock_and_the_lock_outweighs_the_record() {
        let who = |who, busy| Some(Answer { who, busy });
        let facts = |answer, locked, record| Facts { answer, locked, record };
        let trial = Some(Standing::Trial);
        assert_eq!(conclude(&facts(who(Who::Successor, true), true, trial)), Conclusion::GoingOn);
        assert_eq!(
            conclude(&facts(who(Who::Successor, false), true, trial)),
            Conclusion::Ended(Outcome::Committed)
        );
        assert!(matches!(
            conclude(&facts(who(Who::Incumbent, false), true, trial)),
            Conclusion::Ended(Outcome::RolledBack(_))
        ));
        assert_eq!(conclude(&facts(None, true, trial)), Conclusion::GoingOn);
        assert_eq!(conclude(&facts(None, false, trial)), Conclusion::StartFrom(Standing::Trial));
        assert_eq!(conclude(&facts(None, false, None)), Conclusion::StartAnything);
    }
}
