//! Keeps what probes cost the programs that are traced below a configured share, by taking the probes of files out for a
//! while. A trap costs its caller about the same whatever the kernel side makes of the call, so only that ends it, and it
//! ends it for all who call through the file. Pure: times and counts are arguments.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    coverage::Trap,
    half::{Costs, FileId, PAUSE},
    record::Governing,
};

/// What is paused, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    pub file: FileId,
    pub seconds: u32,
    /// For people.
    pub why: String,
}

/// Decides whose probes are taken out. It is told about once a second how often each point was met.
#[derive(Debug, Default)]
pub struct Governor {
    /// CPU time in each second that probes may cost.
    limit: Option<Duration>,
    /// What a hit costs here; without it nothing is paused.
    costs: Option<Costs>,
    looked: Option<u64>,
    /// What each file has cost so far, in nanoseconds, when we looked last.
    totals: BTreeMap<FileId, u64>,
    /// The last ones, which are together not much longer than [`WINDOW`].
    looks: VecDeque<Look>,
    files: BTreeMap<FileId, Known>,
    pauses: u64,
    /// Those that are over, in nanoseconds, added.
    paused: u64,
}

/// What was found since the look before.
#[derive(Debug)]
struct Look {
    /// Nanoseconds.
    elapsed: u64,
    costs: BTreeMap<FileId, u64>,
}

/// A file that was paused.
#[derive(Debug)]
struct Known {
    state: State,
    /// So often the shortest pause was doubled.
    doubled: u32,
}

#[derive(Debug)]
enum State {
    /// The half has not said yet that it is.
    Ordered {
        at: u64,
        why: String,
    },
    Paused {
        since: u64,
    },
    /// Its probes are in place again.
    Placed {
        since: u64,
    },
}

const SECOND: u64 = 1_000_000_000;
/// A share is that of so many nanoseconds: a burst that is over soon pauses nothing.
const WINDOW: u64 = 5 * SECOND;
/// Who is paused again within this time is paused for twice as long as before.
const PARDON: u64 = 300 * SECOND;
/// The half answers an order at once, or had no probes to take out.
const ANSWER: u64 = 5 * SECOND;

impl Costs {
    /// Of one call, in nanoseconds.
    fn of(&self, trap: Trap) -> u64 {
        let or_nothing = |is_so: bool, cost: u32| if is_so { u64::from(cost) } else { 0 };
        u64::from(self.entry)
            + or_nothing(trap.is_stepped, self.step)
            + or_nothing(trap.has_return, self.exit)
    }
}

impl Governor {
    pub fn new(limit: Option<Duration>) -> Governor {
        Governor {
            limit,
            ..Governor::default()
        }
    }

    /// What the half has measured.
    pub fn gauge(&mut self, costs: Option<Costs>) {
        self.costs = costs;
    }

    /// Another limit from here on. What is paused comes back when its time has come.
    pub fn limit(&mut self, limit: Option<Duration>) {
        self.limit = limit;
    }

    /// `calls`: how often each point was met, of which file it is, and what the kernel does there; `now`: nanoseconds
    /// since boot. Whose probes are to be taken out, the most expensive first.
    pub fn counted(
        &mut self,
        now: u64,
        calls: impl IntoIterator<Item = (FileId, Trap, u64)>,
    ) -> Vec<Pause> {
        let Some(costs) = self.costs else {
            return Vec::new();
        };
        let mut totals = BTreeMap::new();
        for (file, trap, calls) in calls {
            let total: &mut u64 = totals.entry(file).or_default();
            *total = total.saturating_add(calls.saturating_mul(costs.of(trap)));
        }
        let before = std::mem::replace(&mut self.totals, totals);
        let Some(elapsed) = self
            .looked
            .replace(now)
            .map(|then| now.saturating_sub(then))
        else {
            return Vec::new();
        };
        // A clock that went back measures nothing.
        if elapsed == 0 {
            return Vec::new();
        }
        self.forget(now);
        // A point's counter may have been another's before: what is new begins here.
        let since = |(file, total): (&FileId, &u64)| {
            let cost = total.saturating_sub(*before.get(file)?);
            (cost > 0 && !self.is_out(*file)).then_some((*file, cost))
        };
        let costs = self.totals.iter().filter_map(since).collect();
        self.looks.push_back(Look { elapsed, costs });
        while let Some(first) = self.looks.front()
            && self.span() - first.elapsed >= WINDOW
        {
            self.looks.pop_front();
        }
        self.decide(now)
    }

    fn decide(&mut self, now: u64) -> Vec<Pause> {
        let Some(limit) = self.limit else {
            return Vec::new();
        };
        let mut files = self.by_file();
        let mut pauses = Vec::new();
        loop {
            let all = self.share(files.values().sum());
            if all <= limit {
                return pauses;
            }
            // Of two that cost the same, the one that is known longer.
            let dearest = files.iter().max_by_key(|(file, cost)| (**cost, !**file));
            let Some((file, cost)) = dearest.map(|(file, cost)| (*file, *cost)) else {
                return pauses;
            };
            files.remove(&file);
            pauses.push(self.order(file, now, [self.share(cost), all, limit]));
        }
    }

    fn order(&mut self, file: FileId, now: u64, [cost, all, limit]: [Duration; 3]) -> Pause {
        let doubled = match self.files.get(&file) {
            Some(Known {
                state: State::Placed { since },
                doubled,
            }) if now.saturating_sub(*since) < PARDON => doubled + 1,
            _ => 0,
        };
        let doubled = doubled.min((PAUSE.end() / PAUSE.start()).ilog2() + 1);
        let seconds = (PAUSE.start() << doubled).min(*PAUSE.end());
        let why = format!(
            "paused by the governor: its probes cost those who call it {:.3} CPUs over 5 s, all probes {:.3}, and {:.3} \
             are allowed ([limits] traced-cpu); they are placed again in {seconds} s",
            cost.as_secs_f64(),
            all.as_secs_f64(),
            limit.as_secs_f64(),
        );
        // What it has cost is paid: it begins anew.
        for look in &mut self.looks {
            look.costs.remove(&file);
        }
        let state = State::Ordered {
            at: now,
            why: why.clone(),
        };
        self.files.insert(file, Known { state, doubled });
        Pause { file, seconds, why }
    }

    /// The probes of a file are out, as was ordered, however long ago. Why.
    pub fn paused(&mut self, file: FileId, now: u64) -> String {
        let state = State::Paused { since: now };
        let doubled = self.files.get(&file).map_or(0, |known| known.doubled);
        let known = self.files.insert(file, Known { state, doubled });
        self.pauses += 1;
        match known.map(|known| known.state) {
            Some(State::Ordered { why, .. }) => why,
            _ => "paused by the governor: its probes cost too much".to_owned(),
        }
    }

    /// Its probes are in place, or never will be again.
    pub fn settled(&mut self, file: FileId, now: u64) {
        let Some(known) = self.files.get_mut(&file) else {
            return;
        };
        if let State::Paused { since } = known.state {
            self.paused += now.saturating_sub(since);
        }
        known.state = State::Placed { since: now };
    }

    /// For `stats`; `None` where nobody is governed.
    pub fn told(&self, now: u64) -> Option<Governing> {
        self.costs?;
        let since = self.files.values().filter_map(|known| match known.state {
            State::Paused { since } => Some(now.saturating_sub(since)),
            State::Ordered { .. } | State::Placed { .. } => None,
        });
        let since: Vec<u64> = since.collect();
        let paused = self.paused + since.iter().sum::<u64>();
        Some(Governing {
            limit: self.limit.map(|limit| limit.as_secs_f64()),
            cost: self.share(self.by_file().values().sum()).as_secs_f64(),
            paused: since.len() as u64,
            pauses: self.pauses,
            paused_seconds: paused as f64 / SECOND as f64,
        })
    }

    /// Its probes are out, or about to be.
    fn is_out(&self, file: FileId) -> bool {
        let known = self.files.get(&file).map(|known| &known.state);
        matches!(known, Some(State::Ordered { .. } | State::Paused { .. }))
    }

    /// Orders that nobody followed, and files that are good or gone.
    fn forget(&mut self, now: u64) {
        let totals = &self.totals;
        self.files.retain(|file, known| match known.state {
            State::Ordered { at, .. } => now.saturating_sub(at) < ANSWER,
            State::Paused { .. } => true,
            State::Placed { since } => {
                totals.contains_key(file) && now.saturating_sub(since) < PARDON
            }
        });
    }

    /// Nanoseconds that were looked at.
    fn span(&self) -> u64 {
        self.looks.iter().map(|look| look.elapsed).sum()
    }

    fn by_file(&self) -> BTreeMap<FileId, u128> {
        let mut files = BTreeMap::new();
        for (file, cost) in self.looks.iter().flat_map(|look| &look.costs) {
            *files.entry(*file).or_default() += u128::from(*cost);
        }
        files
    }

    /// Of what was spent while we looked: CPU time in each second.
    fn share(&self, cost: u128) -> Duration {
        let span = self.span().max(WINDOW);
        let share = cost * u128::from(SECOND) / u128::from(span);
        Duration::from_nanos(u64::try_from(share).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Trap = Trap {
        is_stepped: false,
        has_return: true,
    };

    /// A machine that is looked at each second.
    struct Machine {
        governor: Governor,
        now: u64,
        calls: BTreeMap<FileId, u64>,
    }

    impl Machine {
        /// A tenth of a CPU, 2 µs a call: 50,000 calls in a second.
        fn new() -> Machine {
            let mut governor = Governor::new(Some(Duration::from_millis(100)));
            governor.gauge(Some(Costs {
                entry: 800,
                step: 8_000,
                exit: 1_200,
            }));
            let mut machine = Machine {
                governor,
                now: 0,
                calls: BTreeMap::new(),
            };
            assert_eq!(machine.second(&[(1, 0), (2, 0), (3, 0)]), []);
            machine
        }

        /// So many calls of each file in one second: who is paused for how long. The half does as it is told.
        fn second(&mut self, calls: &[(FileId, u64)]) -> Vec<(FileId, u32)> {
            self.now += SECOND;
            for (file, calls) in calls {
                *self.calls.entry(*file).or_default() += calls;
            }
            let calls = self.calls.iter().map(|(file, calls)| (*file, CALL, *calls));
            let pauses = self.governor.counted(self.now, calls);
            let paused = pauses.into_iter().map(|pause| {
                let why = self.governor.paused(pause.file, self.now);
                assert_eq!(why, pause.why);
                (pause.file, pause.seconds)
            });
            paused.collect()
        }

        /// Nobody calls for so long, and then the file is placed again.
        fn wait(&mut self, file: FileId, seconds: u32) {
            for _ in 0..seconds {
                assert_eq!(self.second(&[]), []);
            }
            self.governor.settled(file, self.now);
        }
    }

    #[test]
    fn what_is_allowed_is_never_paused() {
        let mut machine = Machine::new();
        for _ in 0..600 {
            assert_eq!(machine.second(&[(1, 30_000), (2, 20_000)]), []);
        }
        let told = machine.governor.told(machine.now).unwrap();
        assert_eq!((told.limit, told.cost), (Some(0.1), 0.1));
        assert_eq!((told.paused, told.pauses, told.paused_seconds), (0, 0, 0.0));
        // One call more in the window.
        assert_eq!(machine.second(&[(1, 30_001), (2, 20_000)]), [(1, 10)]);
    }

    #[test]
    fn a_burst_is_not_paused_and_a_flood_is_at_once() {
        let mut machine = Machine::new();
        for _ in 0..10 {
            assert_eq!(machine.second(&[(1, 250_000)]), [], "half a CPU, once");
            (0..4).for_each(|_| assert_eq!(machine.second(&[]), []));
        }
        assert_eq!(machine.second(&[(2, 300_000), (1, 1_000)]), [(2, 10)]);
    }

    #[test]
    fn the_dearest_are_paused_until_the_rest_is_allowed() {
        let mut machine = Machine::new();
        let flood = [(1, 240_000), (2, 400_000), (3, 260_000)];
        assert_eq!(machine.second(&flood), [(2, 10), (3, 10)]);
        let told = machine.governor.told(machine.now + SECOND).unwrap();
        assert_eq!((told.paused, told.pauses, told.paused_seconds), (2, 2, 2.0));
        assert_eq!(told.cost, 0.096, "of what is in place");
        // Of equals the first.
        let mut machine = Machine::new();
        let equals = [(3, 200_000), (2, 200_000)];
        assert_eq!(machine.second(&equals), [(2, 10)]);
    }

    #[test]
    fn what_an_instruction_costs_counts() {
        let mut machine = Machine::new();
        let traps = [(false, false), (false, true), (true, false), (true, true)];
        let costs = traps.map(|(is_stepped, has_return)| {
            let trap = Trap {
                is_stepped,
                has_return,
            };
            machine.governor.costs.unwrap().of(trap)
        });
        assert_eq!(costs, [800, 2_000, 8_800, 10_000]);
        let stepped = Trap {
            is_stepped: true,
            has_return: true,
        };
        // Both points of a file together.
        let calls = |calls| [(9, CALL, calls), (9, stepped, calls)];
        machine.now += SECOND;
        assert_eq!(machine.governor.counted(machine.now, calls(0)), []);
        machine.now += SECOND;
        let pauses = machine.governor.counted(machine.now, calls(50_000));
        let [Pause { file: 9, why, .. }] = &pauses[..] else {
            panic!("{pauses:?}")
        };
        assert_eq!(
            why,
            "paused by the governor: its probes cost those who call it 0.120 CPUs over 5 s, all probes 0.120, and 0.100 \
             are allowed ([limits] traced-cpu); they are placed again in 10 s"
        );
    }

    /// A program in a loop, which is paused, comes back and is paused.
    #[test]
    fn each_pause_is_longer_and_no_longer_than_the_longest() {
        let mut machine = Machine::new();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let [(1, seconds)] = machine.second(&[(1, 500_000)])[..] else {
                panic!("not paused at once")
            };
            pauses.push(seconds);
            machine.wait(1, seconds);
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300, 300]);
        let told = machine.governor.told(machine.now).unwrap();
        assert_eq!((told.paused, told.pauses), (0, 8));
        assert_eq!(told.paused_seconds, 1_210.0);
        // What was good for that long is pardoned.
        for _ in 0..299 {
            assert_eq!(machine.second(&[(1, 1_000)]), []);
        }
        assert_eq!(machine.second(&[(1, 500_000)]), [(1, 10)]);
    }

    /// Who comes back is not paused for what was before.
    #[test]
    fn what_was_paid_is_forgotten() {
        let mut machine = Machine::new();
        let paused = (0..10).find_map(|_| machine.second(&[(1, 100_000)]).pop());
        assert_eq!(paused, Some((1, 10)));
        // Calls until the probes are out.
        assert_eq!(machine.second(&[(1, 100_000)]), []);
        machine.governor.settled(1, machine.now);
        for _ in 0..20 {
            assert_eq!(machine.second(&[(1, 49_000)]), []);
        }
    }

    #[test]
    fn an_order_that_nobody_follows_is_given_again() {
        let mut machine = Machine::new();
        let mut orders = 0;
        for second in 1..=12 {
            let calls = [(1, CALL, second * 1_000_000)];
            orders += machine
                .governor
                .counted(second * SECOND + SECOND, calls)
                .len();
        }
        assert_eq!(orders, 3);
        assert_eq!(machine.governor.told(0).unwrap().pauses, 0);
        // The half was busy, and follows after all.
        machine.governor.forget(100 * SECOND);
        let why = machine.governor.paused(1, 100 * SECOND);
        assert!(why.starts_with("paused by the governor"), "{why}");
        let told = machine.governor.told(101 * SECOND).unwrap();
        assert_eq!((told.paused, told.pauses, told.paused_seconds), (1, 1, 1.0));
        machine.governor.settled(7, 0);
    }

    #[test]
    fn clocks_and_counters_that_jump_pause_nobody() {
        let mut machine = Machine::new();
        // A file that is new has a counter that was another's.
        assert_eq!(machine.second(&[(4, 10_000_000)]), []);
        // An hour of sleep.
        machine.now += 3_600 * SECOND;
        assert_eq!(machine.second(&[(1, 5_000_000)]), []);
        machine.now -= 1_000 * SECOND;
        assert_eq!(machine.second(&[(1, 5_000_000)]), []);
        // Counted from 0 again.
        machine.calls.insert(1, 0);
        assert_eq!(machine.second(&[]), []);
        assert_eq!(machine.second(&[(1, u64::MAX)]), [(1, 10)]);
    }

    #[test]
    fn without_a_limit_or_costs_nobody_is_paused() {
        let mut machine = Machine::new();
        machine.governor.limit(None);
        assert_eq!(machine.second(&[(1, 5_000_000)]), []);
        assert_eq!(machine.governor.told(0).unwrap().limit, None);
        machine.governor.limit(Some(Duration::from_millis(100)));
        machine.governor.gauge(None);
        assert_eq!(machine.second(&[(1, 5_000_000)]), []);
        assert_eq!(machine.governor.told(0), None);
    }
}
