//! The solver of attribution: any sequence of events, also one that no program could cause.
//!
//! It never panics, keeps a bounded amount of memory however long the sequence goes on, and never speaks of a
//! handle or a socket that no event mentioned.
//!
//! An input is one byte, which says whether the sequence is played once or for long, and then eight bytes an
//! event: what, who, handle, thread, socket, flags, and a length of two bytes.
#![no_main]

use std::collections::{HashMap, HashSet};

use agent_ebpf::Direction;
use libfuzzer_sys::fuzz_target;
use play::memory;
use vortex_agent::{
    attribute::{Attention, Call, Place, Solver, Verdict},
    event::HandleId,
};

/// What one process may cost: 1,024 handles and as many sockets, each with votes and sizes.
const PROCESS_BYTES: usize = 12 << 20;
const PROCESSES: usize = 2;
/// A long play has so many events at least, and goes by this many handles and sockets.
const LONG: usize = 6000;

fuzz_target!(|input: &[u8]| {
    let Some((&mode, script)) = input.split_first() else {
        return;
    };
    let (events, _) = script.as_chunks::<8>();
    if events.is_empty() {
        return;
    }
    let rounds = match mode {
        0 => LONG.div_ceil(events.len()),
        _ => 1,
    };
    let mut play = Play::default();
    let before = memory::live();
    for round in 0..rounds as u64 {
        for event in events {
            play.event(*event, round);
        }
    }
    let mentioned = play.mentioned.capacity() + play.handles.capacity();
    let own = 64 * (mentioned + play.sequences.capacity());
    let live = memory::live().saturating_sub(before + own);
    assert!(live <= PROCESSES * PROCESS_BYTES, "{live} bytes are kept");
});

#[derive(Default)]
struct Play {
    solver: Solver,
    time: u64,
    sequences: HashMap<u32, u32>,
    /// Cookies of events.
    mentioned: HashSet<u64>,
    handles: HashSet<HandleId>,
}

impl Play {
    fn event(&mut self, event: [u8; 8], round: u64) {
        let [what, who, handle, thread, socket, flags, low, high] = event;
        let pid = u32::from(who) % PROCESSES as u32;
        let id = HandleId {
            pid,
            born: u64::from(flags >> 6),
            handle: u64::from(handle) + round * 256,
        };
        let tid = u32::from(thread % 8);
        let cookie = u64::from(socket) + round * 256;
        let direction = match flags & 1 {
            0 => Direction::Sent,
            _ => Direction::Received,
        };
        let length = u64::from(u16::from_le_bytes([low, high]));
        self.time += [0, 1_000, 50_000_000, 1_500_000_000][usize::from(flags >> 1 & 3)];
        let lost = u32::from(flags >> 3 & 1);
        let sequence = self.sequences.entry(tid).or_default();
        *sequence = sequence.wrapping_add(1 + lost);
        let place = Place {
            tid,
            sequence: *sequence,
            skipped: flags >> 4 & 1 != 0,
        };
        // A record of TLS: what is carried may be another connection.
        let bytes = [0x17, 3, 3, high, low, 0, 0, 0];
        let (solver, time) = (&mut self.solver, self.time);
        match what % 10 {
            0 => {
                self.handles.insert(id);
                solver.opened(id);
            }
            1 => solver.closed(id),
            2 => {
                self.mentioned.insert(cookie);
                self.handles.insert(id);
                solver.exact(id, cookie);
            }
            3 | 4 => {
                self.handles.insert(id);
                let head = &bytes[usize::from(flags >> 5 & 1)..];
                let data = Call::Data {
                    direction,
                    length,
                    head,
                };
                solver.call(id, place, time, data);
            }
            5 => {
                self.handles.insert(id);
                solver.call(id, place, time, Call::Touch);
            }
            6 => {
                self.handles.insert(id);
                solver.carried(id, tid, direction, &bytes[..usize::from(low % 9)]);
            }
            7 => {
                self.mentioned.insert(cookie);
                let generation = u32::from(high);
                solver.transfer(pid, place, time, (cookie, generation), direction, length);
            }
            8 => solver.socket_ended(cookie),
            _ => match low % 4 {
                0 => solver.lost(pid),
                1 => solver.expire(time),
                2 => {
                    solver.is_contested(id);
                }
                _ => solver.ended(pid),
            },
        }
        self.judge();
    }

    fn judge(&mut self) {
        for verdict in self.solver.verdicts() {
            let handle = match verdict {
                Verdict::Named { handle, cookie } => {
                    assert!(self.mentioned.contains(&cookie), "{verdict:?}");
                    handle
                }
                Verdict::Unnamed { handle } => handle,
            };
            assert!(self.handles.contains(&handle), "{verdict:?}");
        }
        for attention in self.solver.attentions() {
            let (Attention::Named { cookie }
            | Attention::Ignored { cookie, .. }
            | Attention::Open { cookie }) = attention;
            assert!(self.mentioned.contains(&cookie), "{attention:?}");
        }
    }
}
