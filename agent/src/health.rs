//! Do the probes of a process still fire, both ways? One that is only seen to send, or only to receive, may do just
//! that, or have lost the breakpoints of the other way from its memory. Bytes can't tell: a request is smaller than a
//! handshake. So this says who is to be looked at, and the half looks at the breakpoints themselves.

use std::collections::HashMap;

use agent_ebpf::Direction;

/// Processes with plaintext.
#[derive(Debug, Default)]
pub struct Health {
    flows: HashMap<u32, Flow>,
    next: u64,
}

#[derive(Debug)]
struct Flow {
    /// Since the last look at all.
    has_received: bool,
    has_sent: bool,
    /// Not looked at before this, in nanoseconds since boot.
    due: u64,
    pause: u64,
}

/// Between two looks at all, in nanoseconds: what goes one way within one is suspicious.
const TURN: u64 = 1_000_000_000;
/// Between two looks at one process: each finds less than the one before, and costs milliseconds.
const FIRST_PAUSE: u64 = TURN;
const LONGEST_PAUSE: u64 = 600 * TURN;
/// Processes in one turn.
const SUSPECTS: usize = 16;

impl Health {
    /// Plaintext of a process came.
    pub fn carried(&mut self, pid: u32, way: Direction) {
        let flow = self.flows.entry(pid).or_insert(Flow {
            has_received: false,
            has_sent: false,
            due: 0,
            pause: FIRST_PAUSE,
        });
        match way {
            Direction::Received => flow.has_received = true,
            Direction::Sent => flow.has_sent = true,
        }
    }

    /// Processes whose breakpoints are to be looked at.
    pub fn suspects(&mut self, now: u64) -> Vec<u32> {
        if now < self.next {
            return Vec::new();
        }
        self.next = now + TURN;
        let mut suspects = Vec::new();
        for (pid, flow) in &mut self.flows {
            let is_one_way = flow.has_received != flow.has_sent;
            (flow.has_received, flow.has_sent) = (false, false);
            if is_one_way && now >= flow.due && suspects.len() < SUSPECTS {
                flow.due = now + flow.pause;
                flow.pause = (flow.pause * 2).min(LONGEST_PAUSE);
                suspects.push(*pid);
            }
        }
        suspects
    }

    /// The process is gone, or another program.
    pub fn forget(&mut self, pid: u32) {
        self.flows.remove(&pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Received, Sent};

    #[test]
    fn who_goes_one_way_is_looked_at_less_and_less() {
        let mut health = Health::default();
        let mut looks = Vec::new();
        for turn in 0..100 {
            health.carried(1, Received);
            // Nobody asks in between.
            assert!(turn == 0 || health.suspects(turn * TURN - 1).is_empty());
            if health.suspects(turn * TURN) == [1] {
                looks.push(turn);
            }
        }
        assert_eq!(looks, [0, 1, 3, 7, 15, 31, 63]);
        health.forget(1);
        health.carried(1, Sent);
        assert_eq!(health.suspects(100 * TURN), [1], "it is somebody else");
    }

    #[test]
    fn who_goes_both_ways_or_rests_is_left_alone() {
        let mut health = Health::default();
        for turn in 0..10 {
            health.carried(1, Received);
            health.carried(1, Sent);
            assert!(health.suspects(2 * turn * TURN).is_empty());
            assert!(health.suspects((2 * turn + 1) * TURN).is_empty());
        }
    }

    #[test]
    fn a_crowd_is_looked_at_in_turn() {
        let mut health = Health::default();
        let mut seen = std::collections::HashSet::new();
        for turn in 0..200 {
            (0..100).for_each(|pid| health.carried(pid, Sent));
            let suspects = health.suspects(turn * TURN);
            assert!(suspects.len() <= SUSPECTS);
            seen.extend(suspects);
        }
        assert_eq!(seen.len(), 100);
    }
}
