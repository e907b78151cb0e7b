//! What is left out when the agent costs more than it may, and in which order. Pure: times and what was measured are
//! arguments, and what was decided reaches the line as an input, so that a replay leaves out the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::record::{Shedding, WallTime};

/// The most that the pipeline's process may use; `None`: as much as it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Resident, in bytes.
    pub memory: Option<u64>,
    /// Time of a CPU in each second.
    pub cpu: Option<Duration>,
}

impl Limits {
    /// Of all bodies that are not told of yet, and once more of whatever else open exchanges hold: a quarter each, for
    /// what is told of at once, the ring and ourselves need the rest. What is kept already can't be shed.
    pub fn room(self) -> Option<u64> {
        self.memory.map(|memory| memory / 4)
    }
}

/// What is left out; each also what is before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Nothing,
    /// Bodies are counted, and not kept.
    Bodies,
    /// No `data` is written.
    Data,
    /// Of the connections that begin only some are decoded.
    Connections,
}

impl Level {
    /// As in `stats`.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Nothing => "nothing",
            Level::Bodies => "bodies",
            Level::Data => "data",
            Level::Connections => "connections",
        }
    }

    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Level::Nothing => "nothing is left out any more",
            Level::Bodies => "bodies are left out",
            Level::Data => "bodies and data are left out",
            Level::Connections => "bodies, data and some of the new connections are left out",
        }
    }
}

/// A step on the way: one for each level, and from the third on one for each halving of what is decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rung(pub u8);

/// One connection in 64 is decoded.
const TOP: u8 = 8;

impl Rung {
    pub const fn level(self) -> Level {
        match self.0 {
            0 => Level::Nothing,
            1 => Level::Bodies,
            2 => Level::Data,
            _ => Level::Connections,
        }
    }

    /// Of so many new connections one is decoded.
    pub fn one_in(self) -> u64 {
        1 << self.0.min(TOP).saturating_sub(2)
    }

    fn up(self) -> Rung {
        Rung((self.0 + 1).min(TOP))
    }

    fn down(self) -> Rung {
        Rung(self.0.saturating_sub(1))
    }
}

/// What was used, as measured last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time of a CPU in each second.
    pub cpu: Duration,
    /// Resident, in bytes.
    pub memory: u64,
}

/// Decides how much is left out. It is told what is used about once a second.
#[derive(Debug, Default)]
pub struct Shed {
    limits: Limits,
    rung: Rung,
    /// Time and CPU time of the measurement before.
    last: Option<(u64, u64)>,
    used: Usage,
    /// Measurements in a row that were well below the limits. Counted and not timed: a clock that jumps is no calm.
    calm: u32,
    /// How often that calm of [`CALM`] was doubled because it was none.
    doubled: u32,
    /// Measurements since it went down last.
    since_down: Option<u32>,
    said: Level,
    said_at: Option<u64>,
}

/// So many calm measurements in a row are one step down.
const CALM: u32 = 3;
/// Who must go up again within so many has come down too soon, and waits twice as long the next time: a steady load
/// between two rungs would make it go up and down for ever.
const RELAPSE: u32 = 5;
const DOUBLED_MAX: u32 = 5;
/// Calm is what is below so many tenths of each limit.
const CALM_TENTHS: u128 = 7;
/// A change of the level is said no more often, in nanoseconds.
const SAID_APART: u64 = 10_000_000_000;

/// How the use of something is to its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Strain {
    Calm,
    Near,
    Over,
}

impl Strain {
    fn of(used: u128, limit: Option<u128>) -> Strain {
        match limit {
            Some(limit) if used > limit => Strain::Over,
            Some(limit) if used * 10 > limit * CALM_TENTHS => Strain::Near,
            _ => Strain::Calm,
        }
    }
}

impl Shed {
    pub fn new(limits: Limits) -> Shed {
        Shed {
            limits,
            ..Shed::default()
        }
    }

    /// Other limits from here on. Without any it comes down as after a flood.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// `now`: nanoseconds since boot, `cpu`: nanoseconds of CPU time so far, `memory`: resident bytes. The rung from
    /// here on, if it is another.
    pub fn measured(&mut self, now: u64, cpu: u64, memory: u64) -> Option<Rung> {
        let (then, before) = self.last.replace((now, cpu))?;
        // A clock that went back measures nothing.
        let elapsed = now.checked_sub(then).filter(|elapsed| *elapsed > 0)?;
        let cpu = u128::from(cpu.saturating_sub(before)) * 1_000_000_000 / u128::from(elapsed);
        self.used = Usage {
            cpu: Duration::from_nanos(u64::try_from(cpu).unwrap_or(u64::MAX)),
            memory,
        };
        self.since_down = self.since_down.map(|count| count.saturating_add(1));
        let Limits { memory, cpu } = self.limits;
        let strain = Strain::of(self.used.cpu.as_nanos(), cpu.map(|cpu| cpu.as_nanos()))
            .max(Strain::of(self.used.memory.into(), memory.map(u128::from)));
        let old = self.rung;
        match strain {
            Strain::Over => self.rise(),
            Strain::Near => self.calm = 0,
            Strain::Calm => self.calm_down(),
        }
        (self.rung != old).then_some(self.rung)
    }

    fn rise(&mut self) {
        self.calm = 0;
        if self.has_relapsed() {
            self.doubled = (self.doubled + 1).min(DOUBLED_MAX);
        }
        self.since_down = None;
        self.rung = self.rung.up();
    }

    fn calm_down(&mut self) {
        self.calm += 1;
        if self.calm < CALM << self.doubled {
            return;
        }
        self.calm = 0;
        // There is no further down, or the step before was right.
        let is_right = self.since_down.is_some() && !self.has_relapsed();
        if self.rung == Rung(0) || is_right {
            self.doubled = self.doubled.saturating_sub(1);
        }
        self.since_down = (self.rung > Rung(0)).then_some(0);
        self.rung = self.rung.down();
    }

    /// Is it too soon to say that the last step down was right?
    fn has_relapsed(&self) -> bool {
        self.since_down.is_some_and(|count| count <= RELAPSE)
    }

    /// What is to be said to who operates it: another level, and what was used then. Not each time it changes, but
    /// always how it stays.
    pub fn news(&mut self, now: u64) -> Option<(Level, Usage)> {
        let level = self.rung.level();
        let is_soon = |at: u64| now.saturating_sub(at) < SAID_APART;
        if level == self.said || self.said_at.is_some_and(is_soon) {
            return None;
        }
        (self.said, self.said_at) = (level, Some(now));
        Some((level, self.used))
    }
}

/// What the line leaves out, and how much that was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    rung: Rung,
    /// Since when it is this level, in nanoseconds since boot.
    since: Option<u64>,
    bodies: u64,
    data: u64,
    data_bytes: u64,
}

impl Account {
    pub fn turn(&mut self, rung: Rung, now: u64) {
        if rung.level() != self.level() {
            self.since = Some(now);
        }
        self.rung = rung;
    }

    pub fn level(&self) -> Level {
        self.rung.level()
    }

    /// Counts bodies that were cut because of the limits.
    pub fn cut(&mut self, bodies: usize) {
        self.bodies += bodies as u64;
    }

    /// Is what came in one piece to be cut? It is counted then.
    pub fn cuts(&mut self, bytes: &[u8]) -> bool {
        let cuts = self.level() >= Level::Bodies && !bytes.is_empty();
        self.cut(usize::from(cuts));
        cuts
    }

    /// Is a piece of `data` of so many bytes to be left out? It is counted then: what ends a stream has nothing behind
    /// it whose offset would tell.
    pub fn leaves_data_out(&mut self, length: u64) -> bool {
        let leaves = self.level() >= Level::Data;
        if leaves {
            self.data += 1;
            self.data_bytes += length;
        }
        leaves
    }

    /// `connections`: how many were left out. `clock`: wall clock minus time since boot, in nanoseconds.
    pub fn told(&self, connections: u64, clock: u64) -> Shedding {
        Shedding {
            level: self.level(),
            one_in: self.rung.one_in(),
            since: self.since.map(|at| WallTime(at.wrapping_add(clock))),
            bodies: self.bodies,
            data: self.data,
            data_bytes: self.data_bytes,
            connections,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MIB: u64 = 1 << 20;

    /// A process that is measured each second.
    struct Machine {
        shed: Shed,
        now: u64,
        cpu: u64,
    }

    impl Machine {
        /// Half a CPU, and 100 MiB.
        fn new() -> Machine {
            let mut shed = Shed::new(Limits {
                memory: Some(100 * MIB),
                cpu: Some(Duration::from_millis(500)),
            });
            assert_eq!(shed.measured(SECOND, 0, 0), None);
            Machine {
                shed,
                now: SECOND,
                cpu: 0,
            }
        }

        /// One second of this use, in thousandths of a CPU and MiB: the rung behind it.
        fn uses(&mut self, cpu: u64, memory: u64) -> u8 {
            self.now += SECOND;
            self.cpu += cpu * 1_000_000;
            let old = self.shed.rung;
            let new = self.shed.measured(self.now, self.cpu, memory * MIB);
            assert_eq!(new, (self.shed.rung != old).then_some(self.shed.rung));
            self.shed.rung.0
        }
    }

    #[test]
    fn it_rises_with_each_second_above_and_has_a_top() {
        for (cpu, memory) in [(501, 0), (0, 101), (2_000, 1_000)] {
            let mut machine = Machine::new();
            assert_eq!(machine.uses(500, 100), 0, "the limit itself is allowed");
            let rungs: Vec<u8> = (0..10).map(|_| machine.uses(cpu, memory)).collect();
            assert_eq!(rungs, [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]);
        }
        let shares = (0..=9).map(|rung| Rung(rung).one_in());
        assert_eq!(Vec::from_iter(shares), [1, 1, 1, 2, 4, 8, 16, 32, 64, 64]);
        // As a recording may have it.
        assert_eq!(
            (Rung(255).one_in(), Rung(255).level().name()),
            (64, "connections")
        );
    }

    #[test]
    fn it_falls_after_some_calm_seconds() {
        let mut machine = Machine::new();
        machine.uses(600, 0);
        machine.uses(600, 0);
        let rungs: Vec<u8> = (0..8).map(|_| machine.uses(350, 70)).collect();
        assert_eq!(rungs, [2, 2, 1, 1, 1, 0, 0, 0]);
        // Between the two it stays, and calm begins anew.
        for (cpu, memory) in [(351, 0), (0, 71), (500, 100)] {
            let mut machine = Machine::new();
            machine.uses(600, 0);
            let calm = (0, 0);
            let rungs = [calm, calm, (cpu, memory), calm, calm, calm]
                .map(|(cpu, memory)| machine.uses(cpu, memory));
            assert_eq!(rungs, [1, 1, 1, 1, 1, 0], "{cpu} {memory}");
        }
    }

    /// At 120 % with nothing left out and at 60 % without bodies neither is right.
    #[test]
    fn a_steady_load_between_two_rungs_does_not_flap() {
        let mut machine = Machine::new();
        let mut changes = 0;
        let mut before = 0;
        for _ in 0..600 {
            let rung = machine.uses(if before == 0 { 600 } else { 300 }, 0);
            changes += u32::from(rung != before);
            before = rung;
        }
        assert!((8..=24).contains(&changes), "{changes} in ten minutes");
        // What it has learnt is forgotten when the load is gone.
        let calm = (0..600).find(|_| machine.uses(0, 0) == 0 && machine.shed.doubled == 0);
        assert!(calm.is_some());
    }

    #[test]
    fn a_clock_that_jumps_is_neither_calm_nor_a_flood() {
        let mut machine = Machine::new();
        assert_eq!(machine.uses(600, 0), 1);
        // An hour of sleep is one calm measurement and no more.
        machine.now += 3_600 * SECOND;
        assert_eq!([machine.uses(100, 0), machine.uses(100, 0)], [1, 1]);
        assert_eq!(machine.uses(100, 0), 0);
        // Back: measured from there on.
        machine.now -= 1_000 * SECOND;
        assert_eq!(machine.uses(600, 1_000), 0);
        assert_eq!(machine.uses(600, 0), 1);
        // Twice at one time.
        assert_eq!(machine.shed.measured(machine.now, u64::MAX, 0), None);
        assert_eq!(machine.shed.measured(u64::MAX, 0, 0), None);
    }

    #[test]
    fn without_limits_nothing_is_left_out() {
        let mut machine = Machine::new();
        machine.uses(600, 0);
        machine.shed.limit(Limits::default());
        let rungs: Vec<u8> = (0..4).map(|_| machine.uses(64_000, 1 << 40)).collect();
        assert_eq!(rungs, [1, 1, 0, 0]);
    }

    #[test]
    fn the_level_is_said_when_it_changes_and_not_too_often() {
        let mut machine = Machine::new();
        assert_eq!(machine.shed.news(machine.now), None);
        machine.uses(600, 7);
        let usage = Usage {
            cpu: Duration::from_millis(600),
            memory: 7 * MIB,
        };
        assert_eq!(machine.shed.news(machine.now), Some((Level::Bodies, usage)));
        let mut said = Vec::new();
        for _ in 0..20 {
            machine.uses(600, 7);
            said.extend(machine.shed.news(machine.now).map(|(level, _)| level));
        }
        assert_eq!(said, [Level::Connections]);
    }
}
