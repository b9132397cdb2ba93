//! Whether the system can go round in circles by itself.
//!
//! stateright's `eventually` misses cycles. A state that only the system's own steps lead back to is a livelock: nothing
//! has to happen that ends it. So every path of such steps is walked to its end, from every state that faults lead to.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};

use stateright::Model;

use crate::moves::Move;
use crate::show;
use crate::system::System;
use crate::world::State;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Found,
    OnPath,
    Done,
}

struct Walk<'a> {
    system: &'a System,
    marks: HashMap<u64, Mark>,
    starts: Vec<State>,
    path: Vec<(State, Vec<Move>)>,
}

/// Returns the number of states walked, or the moves of a circle.
pub fn find(system: &System) -> Result<usize, Vec<String>> {
    let starts = system.init_states();
    let mut walk = Walk { system, marks: HashMap::new(), starts, path: vec![] };
    while let Some(start) = walk.starts.pop() {
        walk.from(start)?;
    }
    Ok(walk.marks.len())
}

impl Walk<'_> {
    fn from(&mut self, start: State) -> Result<(), Vec<String>> {
        self.enter(start);
        while let Some((state, moves)) = self.path.last_mut() {
            let state = *state;
            let Some(step) = moves.pop() else {
                self.path.pop();
                self.marks.insert(key(&state), Mark::Done);
                continue;
            };
            let mut next = state;
            self.system.make(&mut next, step);
            match self.marks.get(&key(&next)) {
                Some(Mark::OnPath) => return Err(self.circle(&next, step)),
                Some(Mark::Done) => {}
                _ => self.enter(next),
            }
        }
        Ok(())
    }

    fn enter(&mut self, state: State) {
        let mark = self.marks.insert(key(&state), Mark::OnPath);
        if mark == Some(Mark::Done) {
            self.marks.insert(key(&state), Mark::Done);
            return;
        }
        let mut moves = vec![];
        self.system.actions(&state, &mut moves);
        let (own, faults): (Vec<Move>, Vec<Move>) = moves.into_iter().partition(|step| step.is_protocol());
        for fault in faults {
            let mut next = state;
            self.system.make(&mut next, fault);
            if let Entry::Vacant(free) = self.marks.entry(key(&next)) {
                free.insert(Mark::Found);
                self.starts.push(next);
            }
        }
        self.path.push((state, own));
    }

    fn circle(&self, closing: &State, last: Move) -> Vec<String> {
        let first = self.path.iter().position(|(state, _)| state == closing).unwrap_or(0);
        self.path[first..]
            .iter()
            .map(|(state, _)| show::line(state))
            .chain([format!("and round again with {last:?}")])
            .collect()
    }
}

fn key(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}
