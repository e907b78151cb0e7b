//! What was measured, for people and for machines.

use std::fmt::Write;

use serde::Serialize;

use super::cost::{Case, Costs, Via};
use super::reach::Reach;

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

impl Spread {
    pub(super) fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        Some(Spread {
            min: *values.first()?,
            median: middle(&values),
            max: *values.last()?,
        })
    }
}

fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[half]
    } else {
        f64::midpoint(sorted[half - 1], sorted[half])
    }
}

/// The smallest value that at least `share` of all don't exceed.
pub(super) fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.clamp(1, values.len().max(1)) - 1).copied()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Pass,
    Fail,
    /// Measured for information, or a thing without a target.
    Note,
    NotMeasured,
}

#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) claim: String,
    pub(super) measured: String,
    pub(super) verdict: Verdict,
}

impl Check {
    pub(super) fn new(claim: String, outcome: Option<(String, bool)>) -> Check {
        let (measured, verdict) = match outcome {
            Some((measured, true)) => (measured, Verdict::Pass),
            Some((measured, false)) => (measured, Verdict::Fail),
            None => ("not measured".to_owned(), Verdict::NotMeasured),
        };
        Check {
            claim,
            measured,
            verdict,
        }
    }

    pub(super) fn note(claim: impl Into<String>, measured: String) -> Check {
        Check {
            claim: claim.into(),
            measured,
            verdict: Verdict::Note,
        }
    }
}

#[derive(Serialize)]
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) processor: String,
    pub(super) cpus: usize,
    pub(super) pinning: String,
    pub(super) load_average: String,
}

impl Machine {
    pub(super) fn here(pinning: String) -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo")
            .lines()
            .find_map(|l| l.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown".to_owned(), |(_, name)| name.to_owned());
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            pinning,
            load_average: read("/proc/loadavg")
                .split(' ')
                .take(3)
                .collect::<Vec<_>>()
                .join(" "),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) costs: Option<Costs>,
    pub(super) reach: Option<Reach>,
    pub(super) checks: Vec<Check>,
}

impl Report {
    pub(super) fn missed(&self) -> usize {
        self.checks
            .iter()
            .filter(|c| c.verdict == Verdict::Fail)
            .count()
    }

    pub(super) fn for_people(&self) -> String {
        let mut text = self.machine_line();
        if let Some(costs) = &self.costs {
            text += &cost_table(costs);
        }
        if let Some(reach) = &self.reach {
            text += &reach_table(reach);
        }
        let width = self
            .checks
            .iter()
            .map(|c| c.claim.chars().count())
            .max()
            .unwrap_or(0);
        for Check {
            claim,
            measured,
            verdict,
        } in &self.checks
        {
            let word = match verdict {
                Verdict::Pass => "PASS",
                Verdict::Fail => "FAIL",
                Verdict::Note => "    ",
                Verdict::NotMeasured => "  - ",
            };
            let _ = writeln!(text, "{word}  {claim:width$}  {measured}");
        }
        text
    }

    fn machine_line(&self) -> String {
        let Machine {
            kernel,
            processor,
            cpus,
            pinning,
            load_average,
        } = &self.machine;
        format!("{processor}, {cpus} CPUs, Linux {kernel}, load {load_average}; {pinning}\n\n")
    }
}

const HEADINGS: [&str; 9] = [
    "",
    "bytes",
    "bare",
    "+ empty, exported",
    "+ empty, own point",
    "+ copy alone",
    "+ agent",
    "of own",
    "of exported",
];

fn cost_table(costs: &Costs) -> String {
    let mut rows: Vec<[String; 9]> = vec![HEADINGS.map(str::to_owned)];
    for row in &costs.rows {
        rows.push([
            label(&row.case).to_owned(),
            row.case.size.to_string(),
            spread(row.bare),
            spread(row.exported.map(|c| c.added)),
            spread(row.own.map(|c| c.added)),
            spread(row.copy.map(|c| c.added)),
            spread(row.agent.map(|c| c.added)),
            times(row.to_own),
            times(row.to_exported),
        ]);
    }
    let title = format!(
        "ns for a pair, SSL_write + SSL_read: bare, and what probes add to it; median (min..max) of {} rounds\n",
        costs.rounds
    );
    title + &table(&rows)
}

fn reach_table(reach: &Reach) -> String {
    let headings = [
        "",
        "calls a request",
        "bare request",
        "+ empty, a call",
        "+ agent, a call",
        "of empty",
    ];
    let mut rows = vec![headings.map(str::to_owned)];
    let mut missing = String::new();
    for row in &reach.rows {
        if let Some(why) = &row.missing {
            let _ = writeln!(missing, "{}: not measured: {why}", row.family);
            continue;
        }
        let calls = row.calls_per_request;
        rows.push([
            row.family.to_owned(),
            calls.map_or("-".to_owned(), |calls| format!("{:.2}", calls.median)),
            spread(row.bare),
            spread(row.empty),
            spread(row.agent),
            times(row.to_empty),
        ]);
    }
    let title = format!(
        "ns of CPU time of real clients on loopback: of a request, and what probes at our points add to each call \
         (empty: return probes only where we have them); median (min..max) of {} rounds\n",
        reach.rounds
    );
    title + &table(&rows) + &missing
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: Vec<usize> = (0..N)
        .map(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = if i == 0 {
                write!(text, "{cell:width$}")
            } else {
                write!(text, "  {cell:>width$}")
            };
        }
        text.push('\n');
    }
    text.push('\n');
    text
}

fn label(case: &Case) -> &'static str {
    match (case.via, case.pairs_per_second) {
        (Via::Memory, None) => "memory, full speed",
        (Via::Memory, Some(_)) => "memory, 1000 pairs/s",
        (Via::Loopback, _) => "loopback, CPU time",
    }
}

fn spread(values: Option<Spread>) -> String {
    values.map_or("-".to_owned(), |v| {
        format!("{:.0} ({:.0}..{:.0})", v.median, v.min, v.max)
    })
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |r| format!("{r:.3} x"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_one_to_a_hundred() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut values, 0.5), Some(50.0));
        assert_eq!(quantile(&mut values, 0.99), Some(99.0));
        assert_eq!(quantile(&mut values, 1.0), Some(100.0));
        assert_eq!(quantile(&mut [], 0.5), None);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert!(Spread::of(vec![]).is_none());
    }
}
