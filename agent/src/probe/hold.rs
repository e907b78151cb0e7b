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
    /// Stops the process until `file` is answered. False: it may not be stopped.
    pub fn hold(&mut self, pid: u32, file: FileId) -> bool {
        if let Some(hold) = self.0.get_mut(&pid) {
            hold.files.insert(file);
            return true;
        }
        if facts::must_not_be_held(pid) || !signal(pid, Signal::STOP) {
            return false;
        }
        let until = Instant::now() + LIMIT;
        self.0.insert(
            pid,
            Hold {
                files: HashSet::from([file]),
                until,
            },
        );
        true
    }

    pub fn answered(&mut self, file: FileId) {
        self.0.retain(|pid, hold| {
            hold.files.remove(&file);
            let keep = !hold.files.is_empty();
            if !keep {
                signal(*pid, Signal::CONT);
            }
            keep
        });
    }

    /// Lets go of those that waited long enough; when the next one has.
    pub fn expire(&mut self, now: Instant) -> Option<Instant> {
        self.0.retain(|pid, hold| {
            let keep = now < hold.until;
            if !keep {
                signal(*pid, Signal::CONT);
            }
            keep
        });
        self.0.values().map(|hold| hold.until).min()
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
