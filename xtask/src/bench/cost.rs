//! What a traced call costs: the same process with no probes, with empty pairs, with the agent, round by round.
//!
//! Machines drift by tens of per cent within minutes, so every figure is a difference within one round.

use anyhow::{Context, Result};
use serde::Serialize;

use super::Bench;
use super::agent::{Agent, Setup};
use super::copy::CopyingPairs;
use super::empty::EmptyPairs;
use super::load::{Answer, Load, Order, Server};
use super::report::{Check, Spread};

const LARGE: usize = 16 * 1024;
const SIZES: [usize; 3] = [64, 1024, LARGE];
const PACE: u64 = 1000;

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Variant {
    Bare,
    /// Empty entry and return at the exported functions: what every other tool starts from.
    Exported,
    /// The same at our own points.
    Own,
    /// And a bare copy into a ring, of large calls.
    Copy,
    Agent,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Via {
    Memory,
    Loopback,
}

#[derive(Clone, Copy, Serialize)]
pub(super) struct Case {
    pub(super) via: Via,
    pub(super) size: usize,
    pub(super) pairs_per_second: Option<u64>,
}

impl Case {
    fn all() -> Vec<Case> {
        let kinds = [
            (Via::Memory, None),
            (Via::Memory, Some(PACE)),
            (Via::Loopback, None),
        ];
        kinds
            .into_iter()
            .flat_map(|(via, pairs_per_second)| {
                SIZES.map(|size| Case {
                    via,
                    size,
                    pairs_per_second,
                })
            })
            .collect()
    }

    fn order(&self, quick: bool) -> Order {
        let normal = match (self.via, self.pairs_per_second) {
            (Via::Memory, None) => 300,
            (Via::Memory, Some(_)) => 1000,
            (Via::Loopback, _) => 600,
        };
        let ms = if quick { normal / 3 } else { normal };
        Order {
            size: self.size,
            ms: Some(ms),
            rate: self.pairs_per_second,
            ..Order::default()
        }
    }

    fn pace(&self) -> &'static str {
        match (self.via, self.pairs_per_second) {
            (Via::Memory, None) => "full speed",
            (Via::Memory, Some(_)) => "paced",
            (Via::Loopback, _) => "loopback",
        }
    }

    /// A loopback client waits for its server, so only its CPU time says something about the probes.
    fn nanoseconds(&self, answer: &Answer) -> f64 {
        match self.via {
            Via::Memory => answer.mean_ns,
            Via::Loopback => answer.cpu_ns,
        }
    }
}

#[derive(Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) case: Case,
    pub(super) bare: Option<Spread>,
    pub(super) exported: Option<Cost>,
    pub(super) own: Option<Cost>,
    pub(super) copy: Option<Cost>,
    pub(super) agent: Option<Cost>,
    /// Added by the agent over added by the empty pair.
    pub(super) to_own: Option<f64>,
    pub(super) to_exported: Option<f64>,
}

/// Nanoseconds for a pair of calls.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Cost {
    pub(super) total: Spread,
    /// More than the bare pair of the same round.
    pub(super) added: Spread,
}

#[derive(Serialize)]
pub(super) struct Costs {
    pub(super) rounds: usize,
    pub(super) rows: Vec<Row>,
    /// The first round whose ledger wasn't exact, and why.
    pub(super) ledger: Option<String>,
}

struct Sample {
    round: usize,
    variant: Variant,
    case: usize,
    ns: f64,
}

struct Field {
    memory: Load,
    loopback: Load,
    _server: Server,
}

pub(super) fn measure(bench: &Bench) -> Result<Costs> {
    let server = Server::echo(&bench.ground, &bench.untraced)?;
    let mut field = Field {
        memory: Load::memory(&bench.ground, &bench.traced)?,
        loopback: Load::client(&bench.ground, &bench.traced, &server)?,
        _server: server,
    };
    let mut samples = Vec::new();
    let mut ledger = None;
    for round in 0..bench.rounds {
        eprintln!("cost: round {} of {}", round + 1, bench.rounds);
        for variant in variants(bench) {
            let proof = play(bench, &mut field, variant, round, &mut samples)?;
            ledger = ledger.or(proof.err().map(|e| format!("round {}: {e:#}", round + 1)));
        }
    }
    let rows = Case::all()
        .into_iter()
        .enumerate()
        .map(|(i, case)| row(case, i, &samples))
        .collect();
    Ok(Costs {
        rounds: bench.rounds,
        rows,
        ledger,
    })
}

fn variants(bench: &Bench) -> Vec<Variant> {
    let mut variants = vec![Variant::Bare, Variant::Exported];
    if bench.own.is_some() {
        variants.push(Variant::Own);
        variants.push(Variant::Copy);
    }
    if bench.agent.is_some() {
        variants.push(Variant::Agent);
    }
    variants
}

/// The outer error ends the benchmark, the inner one is a ledger that isn't exact.
fn play(
    bench: &Bench,
    field: &mut Field,
    variant: Variant,
    round: usize,
    to: &mut Vec<Sample>,
) -> Result<Result<()>> {
    let mut measure = |field: &mut Field| {
        all_cases(field, bench.quick, variant, |case, ns| {
            to.push(Sample {
                round,
                variant,
                case,
                ns,
            })
        })
    };
    let offsets = match variant {
        Variant::Bare => return measure(field).map(|_| Ok(())),
        Variant::Copy => {
            let own = bench.own.as_deref().unwrap_or_default();
            let cpu = bench.ground.agent_cpu();
            let probes = CopyingPairs::attach(&bench.libssl, own, cpu)?;
            measure(field)?;
            if let Err(error) = probes.prove() {
                eprintln!("the copy alone, round {}: {error:#}", round + 1);
                to.retain(|sample| (sample.round, sample.variant) != (round, variant));
            }
            return Ok(Ok(()));
        }
        Variant::Exported => Some(&bench.exported),
        Variant::Own => bench.own.as_ref(),
        Variant::Agent => None,
    };
    if let Some(offsets) = offsets {
        let _probes = EmptyPairs::attach(&bench.libssl, offsets)?;
        return measure(field).map(|_| Ok(()));
    }
    let program = bench.agent.as_deref().context("no agent")?;
    let pids = [field.memory.pid(), field.loopback.pid()];
    let agent = Agent::watch(&bench.ground, program, &pids, Setup::default())?;
    let moved = measure(field)?;
    Ok(agent.stop()?.ledger.prove(moved))
}

/// Returns how many bytes of plaintext were moved, the warm-ups included.
fn all_cases(
    field: &mut Field,
    quick: bool,
    variant: Variant,
    mut note: impl FnMut(usize, f64),
) -> Result<u64> {
    let mut moved = 0;
    for (i, case) in Case::all().into_iter().enumerate() {
        // Its records have one size: small calls would fill the ring with nothing.
        if variant == Variant::Copy && case.size != LARGE {
            continue;
        }
        let load = match case.via {
            Via::Memory => &mut field.memory,
            Via::Loopback => &mut field.loopback,
        };
        moved += load
            .run(Order {
                size: case.size,
                ms: Some(20),
                ..Order::default()
            })?
            .bytes;
        let answer = load.run(case.order(quick))?;
        moved += answer.bytes;
        note(i, case.nanoseconds(&answer));
    }
    Ok(moved)
}

fn row(case: Case, index: usize, samples: &[Sample]) -> Row {
    let of = |variant: Variant| -> Vec<(usize, f64)> {
        let mine = samples
            .iter()
            .filter(|s| s.case == index && s.variant == variant);
        mine.map(|s| (s.round, s.ns)).collect()
    };
    let bare = of(Variant::Bare);
    let cost = |variant: Variant| -> Option<Cost> {
        let all = of(variant);
        let in_round = |round: usize| bare.iter().find(|b| b.0 == round).map(|b| b.1);
        let added = all
            .iter()
            .filter_map(|&(round, ns)| Some(ns - in_round(round)?))
            .collect();
        Some(Cost {
            total: Spread::of(values(&all))?,
            added: Spread::of(added)?,
        })
    };
    let (exported, own, copy, agent) = (
        cost(Variant::Exported),
        cost(Variant::Own),
        cost(Variant::Copy),
        cost(Variant::Agent),
    );
    Row {
        case,
        bare: Spread::of(values(&bare)),
        exported,
        own,
        copy,
        agent,
        to_own: ratio(agent, own),
        to_exported: ratio(agent, exported),
    }
}

fn values(samples: &[(usize, f64)]) -> Vec<f64> {
    samples.iter().map(|s| s.1).collect()
}

/// None where noise is as large as what is divided by: a round in which probes cost nothing.
fn ratio(of: Option<Cost>, to: Option<Cost>) -> Option<f64> {
    let (of, to) = of.zip(to)?;
    (to.added.min > 0.0).then_some(of.added.median / to.added.median)
}

impl Costs {
    pub(super) fn checks(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        for Row {
            case,
            to_own,
            to_exported,
            ..
        } in &self.rows
        {
            let limits = match (case.via, case.pairs_per_second, case.size) {
                (Via::Memory, None, 64) => vec![
                    ("own point", to_own, 1.6),
                    ("exported functions", to_exported, 0.2),
                ],
                (Via::Memory, None, LARGE) => vec![("exported functions", to_exported, 0.25)],
                (Via::Memory, Some(_), _) => vec![("exported functions", to_exported, 0.4)],
                _ => continue,
            };
            let pace = case.pace();
            for (place, measured, limit) in limits {
                let claim = format!(
                    "added at {} B, {pace}: <= {limit} x the empty pair at the {place}",
                    case.size
                );
                checks.push(Check::new(
                    claim,
                    measured.map(|m| (format!("{m:.3} x"), m <= limit)),
                ));
            }
        }
        for row in self.rows.iter().filter(|row| row.case.size == LARGE) {
            if let Some(floor) = ratio(row.copy, row.exported) {
                let pace = row.case.pace();
                let claim = format!("of that at 16384 B, {pace}: an empty pair and a bare copy");
                checks.push(Check::note(claim, format!("{floor:.3} x")));
            }
        }
        let agent_ran = self.rows.iter().any(|row| row.agent.is_some());
        let books = self.ledger.clone().unwrap_or_else(|| "exact".to_owned());
        let exact = agent_ran.then(|| (books, self.ledger.is_none()));
        checks.push(Check::new(
            "the ledger is exact in every one of these rounds".to_owned(),
            exact,
        ));
        checks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_a_difference_within_a_round() {
        let rounds = [
            (100.0, 300.0, 150.0),
            (1000.0, 1300.0, 1100.0),
            (200.0, 420.0, 240.0),
        ];
        let mut samples = Vec::new();
        for (round, (bare, exported, agent)) in rounds.into_iter().enumerate() {
            for (variant, ns) in [
                (Variant::Bare, bare),
                (Variant::Exported, exported),
                (Variant::Agent, agent),
            ] {
                samples.push(Sample {
                    round,
                    variant,
                    case: 0,
                    ns,
                });
            }
        }
        let row = row(Case::all()[0], 0, &samples);
        assert_eq!(row.exported.unwrap().added.median, 220.0);
        assert_eq!(row.agent.unwrap().added.max, 100.0);
        assert_eq!(row.to_exported, Some(50.0 / 220.0));
        assert!(row.own.is_none() && row.to_own.is_none());
    }

    #[test]
    fn nothing_is_divided_by_noise() {
        let cost = |min, median, max| {
            let spread = Spread { min, median, max };
            Some(Cost {
                total: spread,
                added: spread,
            })
        };
        assert_eq!(ratio(cost(1.0, 6.0, 9.0), cost(1.0, 3.0, 9.0)), Some(2.0));
        assert_eq!(ratio(cost(1.0, 6.0, 9.0), cost(-1.0, 3.0, 9.0)), None);
    }
}
