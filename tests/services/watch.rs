//! What must never be so, looked for all the time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use handoff::DataDirLock;

use crate::look;
use crate::rig::Service;

/// Between two looks at all processes.
const LOOK: Duration = Duration::from_millis(60);
/// Between two questions to whoever serves.
const ASK: Duration = Duration::from_millis(10);
/// An incumbent, a successor, and a predecessor that lets its clients read their last answers.
const DAEMONS_MAX: usize = 3;

/// Two threads that look.
pub struct Watch {
    stop: Arc<AtomicBool>,
    answers: JoinHandle<Vec<u32>>,
    looks: JoinHandle<Vec<String>>,
}

impl Watch {
    pub fn start(service: &Service) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (addr, theirs) = (service.addr, Arc::clone(&stop));
        let answers = std::thread::spawn(move || {
            let mut pids = vec![];
            while !theirs.load(Ordering::Relaxed) {
                if let Some((pid, _)) = look::who_serves(addr)
                    && pids.last() != Some(&pid)
                {
                    pids.push(pid);
                }
                std::thread::sleep(ASK);
            }
            pids
        });
        let (dir, data, theirs) = (service.dir().to_owned(), service.data(), Arc::clone(&stop));
        let looks = std::thread::spawn(move || {
            let mut wrong = vec![];
            while !theirs.load(Ordering::Relaxed) {
                wrong.extend(look(&dir, &data));
                std::thread::sleep(LOOK);
            }
            wrong
        });
        Self { stop, answers, looks }
    }

    /// Ends, and demands that there never were two who served, or who had the lock.
    #[track_caller]
    pub fn expect_one_daemon(self) {
        self.stop.store(true, Ordering::Relaxed);
        let wrong = self.looks.join().unwrap();
        assert!(wrong.is_empty(), "{wrong:#?}");
        let answers = self.answers.join().unwrap();
        let turns = who_took_turns(&answers);
        assert!(turns.is_none(), "{turns:?} took turns: {answers:?}");
    }
}

/// Returns two who answered in turns, as two at a time would. One that is rolled back to answers again, but who was on trial then does not.
fn who_took_turns(answers: &[u32]) -> Option<(u32, u32)> {
    let span = |pid: u32| {
        let first = answers.iter().position(|other| *other == pid)?;
        Some((first, answers.iter().rposition(|other| *other == pid)?))
    };
    answers.iter().enumerate().find_map(|(at, pid)| {
        let (first, last) = span(*pid)?;
        // Another came in between, and once more after this one came back.
        answers[first..=at].iter().find_map(|other| {
            let (began, ended) = span(*other)?;
            (other != pid && at > first && first < began && began < at && ended > at && last >= at)
                .then_some((*pid, *other))
        })
    })
}

fn look(dir: &std::path::Path, data: &PathBuf) -> Option<String> {
    let holders = || DataDirLock::who(data).unwrap_or_default();
    // It may change hands while the processes are gone through, but not twice in such a short time.
    let (first, again) = (holders(), holders());
    if first.len() > 1 && again == first {
        return Some(format!("the lock is held by {first:?}"));
    }
    let daemons = look::processes(dir).into_iter().filter(|process| process.runs("kvd"));
    let daemons: Vec<_> = daemons.collect();
    (daemons.len() > DAEMONS_MAX).then(|| format!("there are {daemons:?}"))
}

#[test]
fn two_who_answer_in_turns_are_found_out() {
    assert_eq!(who_took_turns(&[1, 2, 1, 3, 1, 4]), None);
    assert_eq!(who_took_turns(&[1, 2, 3, 2, 3]), Some((2, 3)));
    assert_eq!(who_took_turns(&[1, 2, 1, 2]), Some((1, 2)));
}
