//! What is usual on this host: which servers of models and tools it knows, who speaks to models, and how much each
//! program sends to each peer. Bounded, whoever talks to whomever: what was not met for longest is forgotten.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::program::short;

/// Names that are remembered, and pairs of a program and a peer.
const NAMES: usize = 4096;
const PAIRS: usize = 4096;
/// No name of a program or a peer is longer than `short` leaves it, and a script's stands behind its interpreter's.
const NAME_MAX: usize = 160;
/// No baseline is longer, as bytes.
pub const BYTES_MAX: usize = 2 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// How long it has been watched, in nanoseconds. By the clock that nobody can set.
    pub watched: u64,
    /// Exchanges that it has learned of: its own clock.
    heard: u64,
    names: BTreeMap<(Novel, String), u64>,
    pairs: BTreeMap<(String, String), Pair>,
}

/// What may be new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Novel {
    ModelEndpoint,
    McpServer,
    ModelUser,
}

/// What a program sends to a peer; an empty peer is any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// When it was met last, in exchanges heard.
    last: u64,
    pub requests: u32,
    /// Of these with encoded data in bulk.
    pub encoded: u32,
    pub sizes: Sizes,
}

/// How long bodies of requests were, by powers of two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes([u16; 32]);

/// Above this the past counts for half.
const SIZES_SUM: u32 = 4096;

/// What is usual of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usual {
    pub count: u32,
    /// Exponents of two: the median, and the median distance from it.
    pub median: u32,
    pub deviation: u32,
    /// Of the largest.
    pub most: u32,
}

impl Sizes {
    fn bucket(size: u64) -> u32 {
        size.max(1).ilog2().min(31)
    }

    pub fn add(&mut self, size: u64) {
        if self.count() >= SIZES_SUM {
            self.0.iter_mut().for_each(|count| *count /= 2);
        }
        self.0[Sizes::bucket(size) as usize] += 1;
    }

    pub fn count(&self) -> u32 {
        self.0.iter().map(|count| u32::from(*count)).sum()
    }

    /// How many were at least half as long as this.
    pub fn like(&self, size: u64) -> u32 {
        let from = Sizes::bucket(size).saturating_sub(1) as usize;
        self.0[from..].iter().map(|count| u32::from(*count)).sum()
    }

    pub fn usual(&self) -> Option<Usual> {
        let count = self.count();
        let most = self.0.iter().rposition(|count| *count > 0)? as u32;
        let middle = |of: &dyn Fn(u32) -> u32| {
            let mut passed = 0;
            (0..32).find(|bucket| {
                passed += of(*bucket);
                2 * passed >= count
            })
        };
        let at = |bucket: u32| u32::from(self.0[bucket as usize]);
        let median = middle(&at)?;
        // Those that far below, and those that far above.
        let around = |distance: u32| {
            let below = median.checked_sub(distance).map_or(0, at);
            let above = Some(median + distance).filter(|it| distance > 0 && *it < 32);
            below + above.map_or(0, at)
        };
        Some(Usual {
            count,
            median,
            deviation: middle(&around)?,
            most,
        })
    }
}

impl Baseline {
    /// One more exchange, so many nanoseconds behind the one before.
    pub(super) fn watch(&mut self, passed: u64) {
        self.watched = self.watched.saturating_add(passed);
        self.heard += 1;
    }

    /// Is it met for the first time?
    pub(super) fn meets(&mut self, what: Novel, name: &str) -> bool {
        let key = (what, short(name));
        let is_new = !self.names.contains_key(&key);
        if is_new && self.names.len() >= NAMES {
            let last: Vec<u64> = self.names.values().copied().collect();
            let border = oldest(last);
            self.names.retain(|_, last| *last > border);
        }
        self.names.insert(key, self.heard);
        is_new
    }

    /// How many of them are known.
    pub(super) fn known(&self, what: Novel) -> usize {
        self.names
            .keys()
            .filter(|(novel, _)| *novel == what)
            .count()
    }

    pub(super) fn pair(&mut self, program: &str, peer: &str) -> &mut Pair {
        let key = (program.to_owned(), short(peer));
        if self.pairs.len() >= PAIRS && !self.pairs.contains_key(&key) {
            let last = self.pairs.values().map(|pair| pair.last).collect();
            let border = oldest(last);
            self.pairs.retain(|_, pair| pair.last > border);
        }
        let pair = self.pairs.entry(key).or_default();
        pair.last = self.heard;
        pair
    }

    /// As bytes, at most [`BYTES_MAX`].
    pub fn bytes(&self) -> Vec<u8> {
        // Memory does not run out of errors: a vector takes what comes.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Of bytes that anybody may have made: `None` if no agent makes such.
    pub fn parse(bytes: &[u8]) -> Option<Baseline> {
        let (baseline, rest) = postcard::take_from_bytes::<Baseline>(bytes).ok()?;
        let is_name = |name: &str| name.len() <= NAME_MAX;
        let Baseline {
            heard,
            names,
            pairs,
            watched: _,
        } = &baseline;
        let is_one = rest.is_empty()
            // It counts on.
            && *heard < u64::MAX / 2
            && names.len() <= NAMES
            && pairs.len() <= PAIRS
            && names.iter().all(|((_, name), last)| is_name(name) && last <= heard)
            && pairs.iter().all(|((program, peer), pair)| {
                is_name(program)
                    && is_name(peer)
                    && pair.last <= *heard
                    && pair.encoded <= pair.requests
                    && pair.sizes.count() <= SIZES_SUM
            });
        is_one.then_some(baseline)
    }
}

/// Until when the oldest eighth was met.
fn oldest(mut met: Vec<u64>) -> u64 {
    let eighth = met.len() / 8;
    *met.select_nth_unstable(eighth).1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(all: &[(u64, u32)]) -> Sizes {
        let mut sizes = Sizes::default();
        for (size, times) in all {
            (0..*times).for_each(|_| sizes.add(*size));
        }
        sizes
    }

    #[test]
    fn what_is_usual_of_sizes() {
        assert_eq!(Sizes::default().usual(), None);
        let usual = |all: &[_]| {
            let usual = sizes(all).usual().unwrap();
            (usual.count, usual.median, usual.deviation, usual.most)
        };
        assert_eq!(usual(&[(1024, 1)]), (1, 10, 0, 10));
        assert_eq!(
            usual(&[(1000, 10), (5000, 10), (70_000, 1)]),
            (21, 12, 3, 16)
        );
        // One that is far off changes neither.
        assert_eq!(
            usual(&[(1000, 50), (2000, 50), (1 << 40, 1)]),
            (101, 10, 1, 31)
        );
        assert_eq!(usual(&[(0, 3), (u64::MAX, 3)]), (6, 0, 0, 31));
    }

    #[test]
    fn the_past_fades() {
        let mut sizes = sizes(&[(1 << 20, 4000)]);
        for _ in 0..20_000 {
            sizes.add(100);
        }
        assert!(sizes.count() <= SIZES_SUM);
        assert!(sizes.like(1 << 20) < 200, "{}", sizes.like(1 << 20));
        assert_eq!(sizes.usual().unwrap().median, 6);
    }

    fn full() -> Baseline {
        let mut baseline = Baseline::default();
        let long = |at: usize| {
            format!(
                "{} {}",
                short(&format!("{at}{}", "€".repeat(99))),
                short(&format!("{at}{}", "b".repeat(99)))
            )
        };
        for at in 0..3 * PAIRS {
            baseline.watch(u64::MAX / 8);
            baseline.meets(Novel::ModelUser, &long(at));
            let pair = baseline.pair(&long(at), &long(at));
            (pair.requests, pair.encoded) = (u32::MAX, u32::MAX);
            (0..32).for_each(|bit| (0..128).for_each(|_| pair.sizes.add(1 << bit)));
        }
        baseline
    }

    #[test]
    fn it_is_bounded_and_comes_back() {
        let baseline = full();
        assert!(baseline.names.len() <= NAMES && baseline.pairs.len() <= PAIRS);
        assert!(baseline.names.len() > NAMES / 2 && baseline.pairs.len() > PAIRS / 2);
        let bytes = baseline.bytes();
        assert!(bytes.len() <= BYTES_MAX, "{}", bytes.len());
        assert_eq!(Baseline::parse(&bytes), Some(baseline));
        assert_eq!(
            Baseline::parse(&Baseline::default().bytes()),
            Some(Baseline::default())
        );
    }

    #[test]
    fn who_was_met_last_stays() {
        let mut baseline = Baseline::default();
        for at in 0..3 * NAMES {
            baseline.watch(1);
            assert!(baseline.meets(Novel::McpServer, &at.to_string()));
            assert_eq!(baseline.meets(Novel::McpServer, "often"), at == 0);
        }
        assert!(!baseline.meets(Novel::McpServer, &(3 * NAMES - 1).to_string()));
        assert!(baseline.meets(Novel::McpServer, "0"));
        assert!(baseline.meets(Novel::ModelEndpoint, "often"));
    }

    #[test]
    fn what_nobody_makes_is_refused() {
        let mut small = Baseline::default();
        small.watch(5);
        small.meets(Novel::ModelUser, "a");
        small.pair("a", "b").sizes.add(1000);
        let bytes = small.bytes();
        for end in 0..bytes.len() {
            assert_eq!(Baseline::parse(&bytes[..end]), None);
        }
        assert_eq!(Baseline::parse(&[&bytes[..], &[0]].concat()), None);
        for at in 0..bytes.len() {
            for value in 0..=255 {
                let mut spoiled = bytes.clone();
                spoiled[at] = value;
                if let Some(mut baseline) = Baseline::parse(&spoiled) {
                    baseline.watch(u64::MAX);
                    baseline.meets(Novel::ModelUser, "c");
                    baseline.pair("a", "b").sizes.add(1);
                    baseline.pair("a", "b").sizes.usual();
                }
            }
        }
        let changes: [fn(&mut Baseline); 6] = [
            |it| it.heard = u64::MAX,
            |it| {
                it.names
                    .extend([((Novel::ModelUser, "x".repeat(NAME_MAX + 1)), 0)])
            },
            |it| it.names.extend([((Novel::ModelUser, "x".into()), 9)]),
            |it| it.pair("a", "b").last = 9,
            |it| it.pair("a", "b").encoded = 9,
            |it| it.pair("a", "b").sizes.0[3] = u16::MAX,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut wrong = small.clone();
            change(&mut wrong);
            assert_eq!(Baseline::parse(&wrong.bytes()), None, "change {number}");
        }
        let mut many = Baseline::default();
        many.names
            .extend((0..=NAMES).map(|at| ((Novel::ModelUser, at.to_string()), 0)));
        assert_eq!(Baseline::parse(&many.bytes()), None);
    }
}
