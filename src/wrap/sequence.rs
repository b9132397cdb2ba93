//! How a daemon is asked to end.

use std::time::{Duration, Instant};

use crate::sys::process::Signal;

/// The least and the longest time that is left for processes to die of SIGKILL before the deadline.
const DYING: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A step of a [`Sequence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sends a signal: SIGKILL to every process of the daemon, others to its main process.
    Signal(Signal),
    /// Waits for the end, for so long.
    Wait(Duration),
}

/// Signals, and how long the daemon has after each. It ends as soon as the daemon has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence(pub Vec<Step>);

impl Default for Sequence {
    fn default() -> Self {
        Self(vec![Step::Signal(Signal::SIGTERM)])
    }
}

impl Sequence {
    /// Whether it ends by force: what is left at the end of the grace is killed, and not named.
    pub fn is_forced(&self) -> bool {
        self.0.last() == Some(&Step::Signal(Signal::SIGKILL))
    }
}

/// A sequence that is gone through until a deadline.
#[derive(Debug)]
pub(super) struct Course {
    steps: std::vec::IntoIter<Step>,
    /// When the next step is due.
    next: Option<Instant>,
    /// When what is left is killed.
    kill: Option<Instant>,
}

impl Course {
    /// With force, what is left shortly before the deadline is killed, whatever the sequence says.
    pub fn new(sequence: &Sequence, now: Instant, deadline: Instant, force: bool) -> Self {
        let grace = deadline.saturating_duration_since(now);
        let dying = (grace / 10).clamp(DYING.0, DYING.1);
        let mut steps = sequence.0.clone();
        // A signal and SIGKILL right after it would be SIGKILL alone: the daemon has what there is of the grace.
        let at_the_end = matches!(steps[..], [.., Step::Signal(_), Step::Signal(Signal::SIGKILL)]);
        if at_the_end {
            steps.pop();
        }
        let kill = (force || at_the_end).then(|| deadline.checked_sub(dying).unwrap_or(now).max(now));
        Self { steps: steps.into_iter(), next: Some(now), kill }
    }

    /// Returns the signal that is due, if one is.
    pub fn due(&mut self, now: Instant) -> Option<Signal> {
        if self.kill.is_some_and(|at| at <= now) {
            (self.kill, self.next) = (None, None);
            return Some(Signal::SIGKILL);
        }
        while self.next.is_some_and(|at| at <= now) {
            match self.steps.next() {
                Some(Step::Signal(signal)) => return Some(signal),
                Some(Step::Wait(length)) => self.next = now.checked_add(length),
                None => self.next = None,
            }
        }
        None
    }

    /// Returns when to ask again.
    pub fn next(&self) -> Option<Instant> {
        self.next.into_iter().chain(self.kill).min()
    }

    /// Kills what is left now: somebody is in a hurry.
    pub fn hurry(&mut self, now: Instant) {
        self.kill = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::Signal::{SIGKILL, SIGQUIT, SIGTERM};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Goes through a sequence in steps of a second, and returns in which of them each signal is sent.
    fn walk(steps: &[Step], grace: u32, force: bool) -> Vec<(u32, Signal)> {
        let start = Instant::now();
        let mut course = Course::new(&Sequence(steps.to_vec()), start, start + grace * SECOND, force);
        let mut sent = vec![];
        for second in 0..=grace {
            while let Some(signal) = course.due(start + second * SECOND) {
                sent.push((second, signal));
            }
        }
        sent
    }

    #[test]
    fn each_signal_is_sent_when_the_one_before_had_its_time() {
        let steps = [Step::Signal(SIGQUIT), Step::Wait(5 * SECOND), Step::Signal(SIGTERM)];
        assert_eq!(walk(&steps, 20, false), [(0, SIGQUIT), (5, SIGTERM)]);
    }

    #[test]
    fn a_kill_right_after_a_signal_comes_shortly_before_the_deadline() {
        let steps = [Step::Signal(SIGTERM), Step::Signal(SIGKILL)];
        assert_eq!(walk(&steps, 20, false), [(0, SIGTERM), (19, SIGKILL)]);
    }

    #[test]
    fn a_kill_that_has_its_time_comes_then() {
        let steps = [Step::Signal(SIGTERM), Step::Wait(3 * SECOND), Step::Signal(SIGKILL)];
        assert_eq!(walk(&steps, 20, false), [(0, SIGTERM), (3, SIGKILL)]);
        assert_eq!(walk(&[Step::Signal(SIGKILL)], 20, false), [(0, SIGKILL)]);
    }

    #[test]
    fn by_force_what_is_left_at_the_end_is_killed() {
        assert_eq!(walk(&[Step::Signal(SIGTERM)], 20, true), [(0, SIGTERM), (19, SIGKILL)]);
        assert_eq!(walk(&[], 0, true), [(0, SIGKILL)]);
    }
}
