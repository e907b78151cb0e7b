//! Processes of CMD's tree that wait while a new file of theirs is looked at: so their first request is
//! not lost. Bounded, and undone whatever happens.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::facts;
use crate::half::{FileId, HELD_LONGEST};

/// The longest time that a process waits for its file to be opened: the file system may never answer.
const OPENING: Duration = Duration::from_millis(400);
/// And from then on, until it is known what there is to probe. What is searched is local or a copy, so this takes
/// processor time and the disk's: 1 s for an executable of 300 MB that is in memory, once, as the result is kept.
const LOCATING: Duration = Duration::from_millis(1500);
/// And from then on, until the probes are in place. The kernel answers: an attach takes 3 to 20 ms. But who
/// detaches elsewhere on the machine holds its writer lock for 70 to 160 ms a file, and on a loaded one several
/// of those were in front of us: 400 ms in all were too few for one library in 2,000. An emulated machine with Linux
/// 5.10, which takes each probe by itself, needs 1.3 s for one library.
const PLACING: Duration = Duration::from_secs(4);

/// Makes the calling thread run before all ordinary ones: the way from a mapping to the stop is shorter than
/// the mapping process's to its first request, as long as nobody else is in between. Behind a thread that we
/// woke ourselves it was up to two ticks of the kernel, 8 ms, also with a better nice value. Refused without
/// CAP_SYS_NICE and, with CONFIG_RT_GROUP_SCHED, in a control group without real-time of its own.
pub fn hurry() -> io::Result<()> {
    // Its only member everywhere but in musl, whose own function is a stub.
    let priority: libc::c_int = 1;
    // SAFETY: the kernel reads one int, `struct sched_param`; 0 is the calling thread.
    let set = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            libc::SCHED_RR,
            &raw const priority,
        )
    };
    if set == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

#[derive(Default)]
pub struct Holds(HashMap<u32, Hold>);

struct Hold {
    /// The id may belong to somebody else by the time that the process is continued.
    pidfd: OwnedFd,
    files: HashSet<FileId>,
    since: Instant,
    until: Instant,
    is_stopped: bool,
}

impl Holds {
    /// Notes that the process is to wait for `file`. False: it may not be stopped. The other half is told
    /// before [`Holds::stop`], so that it can undo it if we die; if it can't be told, [`Holds::spare`].
    pub fn plan(&mut self, pid: u32, file: FileId, group_of_command: u32) -> bool {
        if let Some(hold) = self.0.get_mut(&pid) {
            hold.files.insert(file);
            return true;
        }
        let Some(raw) = Pid::from_raw(pid as i32) else {
            return false;
        };
        let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else {
            return false;
        };
        if !facts::may_be_held(pid, group_of_command) {
            return false;
        }
        let since = Instant::now();
        self.0.insert(
            pid,
            Hold {
                pidfd,
                files: HashSet::from([file]),
                since,
                until: since + OPENING,
                is_stopped: false,
            },
        );
        true
    }

    pub fn stop(&mut self, pid: u32) {
        if let Some(hold) = self.0.get_mut(&pid) {
            hold.is_stopped = true;
            hold.signal(Signal::STOP);
        }
    }

    /// The process does not wait after all, unless it does already. True: it runs.
    pub fn spare(&mut self, pid: u32) -> bool {
        let runs = self.0.get(&pid).is_none_or(|hold| !hold.is_stopped);
        if runs {
            self.0.remove(&pid);
        }
        runs
    }

    /// The file is open, and the other half searches it.
    pub fn locating(&mut self, file: FileId) {
        self.extend(file, LOCATING);
    }

    /// There is something to probe in the file, and it begins now.
    pub fn placing(&mut self, file: FileId) {
        self.extend(file, PLACING);
    }

    fn extend(&mut self, file: FileId, limit: Duration) {
        let until = Instant::now() + limit;
        for hold in self.0.values_mut() {
            if hold.files.contains(&file) {
                hold.until = hold.until.max(until).min(hold.since + HELD_LONGEST);
            }
        }
    }

    /// Lets those go that waited for nothing else; who they were.
    pub fn answered(&mut self, file: FileId) -> Vec<u32> {
        self.release(|hold| {
            hold.files.remove(&file);
            hold.files.is_empty()
        })
    }

    /// Who waits for `file` waits for `known` instead: they are one.
    pub fn same(&mut self, file: FileId, known: FileId) {
        for hold in self.0.values_mut() {
            if hold.files.remove(&file) {
                hold.files.insert(known);
            }
        }
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
        let over = self.0.extract_if(|_, hold| is_over(hold));
        over.map(|(pid, hold)| {
            hold.signal(Signal::CONT);
            pid
        })
        .collect()
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        for hold in self.0.values() {
            hold.signal(Signal::CONT);
        }
    }
}

impl Hold {
    fn signal(&self, signal: Signal) {
        // It may have ended.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleeper() -> (Sleeper, u32, u32) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        (Sleeper(child), pid, facts::group(pid).unwrap())
    }

    fn is_stopped(pid: u32, group: u32) -> bool {
        let until = Instant::now() + Duration::from_secs(10);
        while facts::may_be_held(pid, group) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        !facts::may_be_held(pid, group)
    }

    #[test]
    fn who_was_not_stopped_is_spared_and_who_was_is_not() {
        let (_sleeper, pid, group) = sleeper();
        let mut holds = Holds::default();
        assert!(holds.plan(pid, 1, group));
        assert!(holds.spare(pid));
        assert_eq!(holds.next(), None);
        assert!(holds.plan(pid, 1, group));
        holds.stop(pid);
        assert!(is_stopped(pid, group));
        assert!(holds.plan(pid, 2, group));
        assert!(!holds.spare(pid), "it waits already");
        assert!(holds.answered(1).is_empty());
        assert_eq!(holds.answered(2), [pid]);
    }

    #[test]
    fn a_hold_is_longer_for_each_step_and_bounded_in_all() {
        let (_sleeper, pid, group) = sleeper();
        let mut holds = Holds::default();
        assert!(holds.plan(pid, 1, group));
        let since = holds.0[&pid].since;
        let mut last = since;
        for step in [Holds::locating, Holds::placing] {
            step(&mut holds, 1);
            assert!(holds.next() > Some(last));
            last = holds.next().unwrap();
        }
        // No step takes back what another one gave.
        holds.locating(1);
        assert_eq!(holds.next(), Some(last));
        holds.0.get_mut(&pid).unwrap().since -= Duration::from_secs(5);
        holds.placing(1);
        assert_eq!(
            holds.next(),
            Some(since + HELD_LONGEST - Duration::from_secs(5))
        );
    }
}
