//! What came of the demonstration: a row for each scenario, and the totals.

use std::fmt::{self, Write};

use serde::{Serialize, Serializer};

use super::driver::Ended;
use super::scenario::{Act, Scenario};
use super::stage::Closing;
use crate::load::Counts;

/// What came of one scenario.
#[derive(Debug, Serialize)]
pub struct Row {
    #[serde(rename = "scenario")]
    pub name: &'static str,
    /// What the clients did: nothing was hidden from the count, but where a process is killed they may be idle.
    pub clients: &'static str,
    pub expected: &'static str,
    pub outcome: String,
    pub as_expected: bool,
    pub problems: Vec<String>,
    /// Who serves now.
    pub version: String,
    pub pid: u32,
    pub swaps: u64,
    pub rollbacks: u64,
    /// In microseconds, in ascending order; of those swaps whose driver lived to tell.
    #[serde(rename = "gap_us", serialize_with = "middle")]
    pub gaps_us: Vec<u64>,
    pub gap_us_max: Option<u64>,
    pub longest_stall_ms: f64,
    pub acknowledged_writes: u64,
    #[serde(rename = "lost_writes")]
    pub lost: Option<u64>,
    pub refused: u64,
    pub reset: u64,
    pub eof_before_answer: u64,
    pub seconds: f64,
    #[serde(skip)]
    pub counts: Counts,
}

fn middle<S: Serializer>(gaps: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
    median(gaps).serialize(serializer)
}

fn median(gaps: &[u64]) -> Option<u64> {
    gaps.get(gaps.len() / 2).copied()
}

impl Row {
    /// Returns the row of a scenario that is yet to be played.
    pub fn new(scenario: &Scenario) -> Self {
        let idle = matches!(scenario.act, Act::KillIdle(..));
        Self {
            name: scenario.name,
            clients: if idle { "idle at the kill" } else { "writing" },
            expected: scenario.expected.words(),
            outcome: "nothing".into(),
            as_expected: false,
            problems: Vec::new(),
            version: String::new(),
            pid: 0,
            swaps: 0,
            rollbacks: 0,
            gaps_us: Vec::new(),
            gap_us_max: None,
            longest_stall_ms: 0.0,
            acknowledged_writes: 0,
            lost: None,
            refused: 0,
            reset: 0,
            eof_before_answer: 0,
            seconds: 0.0,
            counts: Counts::default(),
        }
    }

    /// Notes how one swap ended.
    pub fn note_end(&mut self, ended: &Ended) {
        match ended.committed {
            true => self.swaps += 1,
            false => self.rollbacks += u64::from(ended.rolled_back),
        }
        self.gaps_us.extend(ended.gap_us.filter(|_| ended.committed));
        self.gaps_us.sort_unstable();
        self.gap_us_max = self.gaps_us.last().copied();
        self.outcome = match (ended.committed, self.swaps) {
            (true, 1) => "committed".into(),
            (true, swaps) => format!("committed {swaps} times"),
            (false, _) if ended.rolled_back => format!("rolled back ({})", ended.kind),
            (false, _) => ended.kind.clone(),
        };
    }

    /// Takes what was counted into the row, and decides.
    pub fn conclude(&mut self) {
        let counts = &self.counts;
        self.longest_stall_ms = counts.stall_us_max as f64 / 1000.0;
        self.acknowledged_writes = counts.acknowledged;
        (self.refused, self.reset, self.eof_before_answer) =
            (counts.refused, counts.reset, counts.unanswered);
        self.problems.extend(disturbances(counts));
        self.as_expected = self.problems.is_empty() && self.lost == Some(0);
    }

    /// Returns it in one line.
    pub fn line(&self) -> String {
        let mut line = format!("{}: {}", self.name, self.outcome);
        if self.pid != 0 {
            // Writing to a string does not fail.
            let _ = write!(line, ", {} serves (pid {})", self.version, self.pid);
        }
        if let [first, .., last] = self.gaps_us[..] {
            let _ = write!(line, ", gaps of {first} to {last} us");
        }
        if !self.problems.is_empty() {
            let _ = write!(line, "; {}", self.problems.join("; "));
        }
        line
    }
}

/// Returns what clients saw that they must not see.
fn disturbances(counts: &Counts) -> Option<String> {
    let seen = [
        (counts.refused, "refused"),
        (counts.reset, "reset"),
        (counts.unanswered, "closed before an answer"),
        (counts.timed_out, "timed out"),
        (counts.errors, "error replies"),
        (counts.contradictions, "contradictions"),
    ];
    let seen: Vec<String> =
        seen.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    (!seen.is_empty()).then(|| format!("clients saw: {}", seen.join(", ")))
}

/// What was counted in all.
#[derive(Debug, Serialize)]
pub struct Totals {
    pub acknowledged_writes: u64,
    /// Of all acknowledged writes, read back at the end; unknown where nobody serves any more.
    pub lost_writes: Option<u64>,
    pub refused: u64,
    pub reset: u64,
    pub eof_before_answer: u64,
    pub timed_out: u64,
    pub errors: u64,
    pub contradictions: u64,
    pub swaps: u64,
    pub rollbacks: u64,
    /// Processes that were still there when they should have ended.
    pub processes_left: usize,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub scenarios: Vec<Row>,
    pub totals: Totals,
    /// What was found only at the end.
    pub problems: Vec<String>,
    pub seconds: f64,
    pub ok: bool,
}

impl Report {
    /// Adds up. A demonstration that did not come to its end is not one that went well.
    pub fn new(scenarios: Vec<Row>, closing: Closing, complete: bool, seconds: f64) -> Self {
        let counts = &closing.counts;
        let in_laps: u64 = scenarios.iter().filter_map(|row| row.lost).sum();
        let totals = Totals {
            acknowledged_writes: counts.acknowledged,
            lost_writes: closing.lost.map(|lost| lost.max(in_laps)),
            refused: counts.refused,
            reset: counts.reset,
            eof_before_answer: counts.unanswered,
            timed_out: counts.timed_out,
            errors: counts.errors,
            contradictions: counts.contradictions,
            swaps: scenarios.iter().map(|row| row.swaps).sum(),
            rollbacks: scenarios.iter().map(|row| row.rollbacks).sum(),
            processes_left: closing.left,
        };
        let mut problems = closing.problems;
        problems.extend(disturbances(counts));
        if !complete {
            problems.push("not everything was tried".into());
        }
        let as_expected = scenarios.iter().all(|row| row.as_expected);
        let ok = complete && as_expected && problems.is_empty() && totals.lost_writes == Some(0);
        Self { scenarios, totals, problems, seconds, ok }
    }
}

/// The table's first line.
const HEADINGS: [&str; 11] = [
    "scenario", "expected", "outcome", "serves", "gap us", "stall ms", "written", "lost", "refused", "reset",
    "eof",
];
/// The columns from this one on are numbers.
const NUMBERS: usize = 4;

impl fmt::Display for Report {
    /// Prints the table, the totals and the verdict.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![HEADINGS.map(str::to_owned)];
        rows.extend(self.scenarios.iter().map(Row::cells));
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
                NUMBERS.. => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  "))?;
        }
        writeln!(f)?;
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        self.write_verdict(f)
    }
}

impl Report {
    fn write_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { acknowledged_writes, refused, reset, eof_before_answer, swaps, rollbacks, .. } =
            &self.totals;
        let verdict = if self.ok { "all as promised" } else { "NOT as promised" };
        write!(
            f,
            "{acknowledged_writes} acknowledged writes, {} lost, {refused} refused, {reset} reset, \
             {eof_before_answer} closed before an answer; {swaps} swaps, {rollbacks} rollbacks in {:.1} s: {verdict}",
            or_unknown(self.totals.lost_writes),
            self.seconds
        )
    }
}

impl Row {
    fn cells(&self) -> [String; HEADINGS.len()] {
        let serves = if self.pid == 0 { "-".into() } else { format!("{} ({})", self.version, self.pid) };
        [
            self.name.into(),
            self.expected.into(),
            if self.as_expected { self.outcome.clone() } else { format!("{} (!)", self.outcome) },
            serves,
            median(&self.gaps_us).map_or("-".into(), |gap| gap.to_string()),
            format!("{:.1}", self.longest_stall_ms),
            self.acknowledged_writes.to_string(),
            or_unknown(self.lost),
            self.refused.to_string(),
            self.reset.to_string(),
            self.eof_before_answer.to_string(),
        ]
    }
}

fn or_unknown(count: Option<u64>) -> String {
    count.map_or("?".into(), |count| count.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::scenario::SWAP;
    use super::*;

    fn good_row() -> Row {
        let mut row = Row::new(&SWAP);
        row.note_end(&Ended {
            committed: true,
            kind: "committed".into(),
            gap_us: Some(300),
            ..Ended::default()
        });
        row.counts.acknowledged = 10;
        row.lost = Some(0);
        row
    }

    fn closing() -> Closing {
        let counts = Counts { acknowledged: 10, ..Counts::default() };
        Closing { counts, lost: Some(0), left: 0, problems: Vec::new() }
    }

    fn report(change: impl FnOnce(&mut Row, &mut Closing)) -> Report {
        let (mut row, mut closing) = (good_row(), closing());
        change(&mut row, &mut closing);
        row.conclude();
        Report::new(vec![row], closing, true, 1.0)
    }

    #[test]
    fn all_is_well_only_if_nothing_was_lost_and_no_client_was_disturbed() {
        assert!(report(|_, _| {}).ok);
        let broken: [fn(&mut Row, &mut Closing); 9] = [
            |row, _| row.lost = Some(1),
            |row, _| row.lost = None,
            |row, _| row.counts.reset = 1,
            |row, _| row.problems.push("somebody else serves".into()),
            |_, closing| closing.lost = Some(1),
            |_, closing| closing.lost = None,
            |_, closing| closing.counts.refused = 1,
            |_, closing| closing.counts.unanswered = 1,
            |_, closing| closing.problems.push("a process is left".into()),
        ];
        for (number, change) in broken.into_iter().enumerate() {
            assert!(!report(change).ok, "change {number}");
        }
        let (mut row, closing) = (good_row(), closing());
        row.conclude();
        assert!(!Report::new(vec![row], closing, false, 1.0).ok);
    }

    #[test]
    fn the_table_is_aligned_and_ends_with_the_totals_and_the_verdict() {
        let text = report(|_, _| {}).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].chars().count(), lines[1].chars().count());
        assert!(lines[1].starts_with("a swap  "), "{text}");
        assert!(lines.last().unwrap().ends_with("1 swaps, 0 rollbacks in 1.0 s: all as promised"), "{text}");
        let broken = report(|row, _| row.counts.reset = 1).to_string();
        assert!(broken.contains("committed (!)") && broken.ends_with("NOT as promised"), "{broken}");
    }

    #[test]
    fn of_several_gaps_the_table_shows_the_middle_one_and_the_json_also_the_longest() {
        let mut row = good_row();
        for gap in [900, 100] {
            row.note_end(&Ended { committed: true, gap_us: Some(gap), ..Ended::default() });
        }
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!((&json["gap_us"], &json["gap_us_max"]), (&300.into(), &900.into()));
        assert_eq!(row.outcome, "committed 3 times");
    }
}
