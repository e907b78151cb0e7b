//! Processes of CMD's tree that wait while a new file of theirs is looked at: so their first request is
//! not lost. Bounded, and undone whatever happens.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::facts;
use crate::half::FileId;

/// The longest time that a process waits. An attach takes 3 to 20 ms.
const LIMIT: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Holds(HashMap<u32, Hold>);

struct Hold {
    files: HashSet<FileId>,
    until: Instant,
}

impl Holds {
    /// Notes that the process is to wait for `file`. False: it may not be stopped. The other half is told
    /// before [`Holds::stop`], so that it can undo it if we die.
    pub fn plan(&mut self, pid: u32, file: FileId) -> bool {
        if !self.0.contains_key(&pid) && facts::must_not_be_held(pid) {
            return false;
        }
        let until = Instant::now() + LIMIT;
        let hold = self.0.entry(pid).or_insert_with(|| Hold {
            files: HashSet::new(),
            until,
        });
        hold.files.insert(file);
        true
    }

    pub fn stop(&self, pid: u32) {
        // It may be gone.
        signal(pid, Signal::STOP);
    }

    /// Lets those go that waited for nothing else; who they were.
    pub fn answered(&mut self, file: FileId) -> Vec<u32> {
        self.release(|hold| {
            hold.files.remove(&file);
            hold.files.is_empty()
        })
    }

    /// Lets those go that waited long enough; who they were.
    pub fn expire(&mut self, now: Instant) -> Vec<u32> {
        self.release(|hold| now >= hold.until)
    }

    /// When the next one has waited long enough.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().map(|hold| hold.until).min()
    }

    fn release(&mut self, mut is_over: impl FnMut(&mut Hold) -> bool) -> Vec<u32> {
        let over: Vec<u32> = self
            .0
            .extract_if(|_, hold| is_over(hold))
            .map(|(pid, _)| pid)
            .collect();
        for pid in &over {
            signal(*pid, Signal::CONT);
        }
        over
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        for pid in self.0.keys() {
            signal(*pid, Signal::CONT);
        }
    }
}

fn signal(pid: u32, signal: Signal) -> bool {
    Pid::from_raw(pid as i32).is_some_and(|pid| kill_process(pid, signal).is_ok())
}
