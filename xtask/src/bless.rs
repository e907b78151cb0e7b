//! Takes over what the tests measure as what they expect: the tables of `tests/golden`.
//!
//! Read the difference before you commit it: these tables say what users of a kernel get.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{
    sh::{self, MINUTE},
    test, vm,
};

/// This machine, among the kernels.
const HOST: &str = "host";
const KERNELS: [&str; 6] = [HOST, "5.10", "6.1", "6.12", "6.18", "7.2"];

/// The tests that print what they measure have this in their names.
const TESTS: &str = "golden_";

/// Runs those tests; that they fail is why this is run.
pub(crate) fn command(args: &[&str]) -> Result<()> {
    let kernels = match args {
        [] => KERNELS.to_vec(),
        ["--kernel", kernels] => kernels.split(',').collect(),
        _ => bail!(
            "not understood: {}; see `cargo xtask --help`",
            args.join(" ")
        ),
    };
    crate::setup::everything()?;
    let machines: Vec<&str> = kernels
        .iter()
        .copied()
        .filter(|kernel| *kernel != HOST)
        .collect();
    let mut said = String::new();
    if machines.len() < kernels.len() {
        said += &here()?;
    }
    if !machines.is_empty() {
        for outcome in vm::run(Some(&machines), Some(1), false, Some(TESTS))? {
            said += &fs::read_to_string(outcome.log())?;
        }
    }
    let mut tables: BTreeMap<&str, Vec<[&str; 3]>> = BTreeMap::new();
    for (table, cell) in said.lines().filter_map(measured) {
        tables.entry(table).or_default().push(cell);
    }
    for (table, cells) in tables {
        let path = sh::root().join(format!("tests/golden/{table}.txt"));
        let old = fs::read_to_string(&path).with_context(|| format!("no table {table}"))?;
        fs::write(&path, renewed(&old, &cells))?;
        sh::say(&format!("  {}: {} cells", path.display(), cells.len()));
    }
    Ok(())
}

fn here() -> Result<String> {
    let agent: PathBuf = test::build_agent(&[])?;
    let env = [("VORTEX_AGENT", agent.display().to_string())];
    let mut command = sh::as_root(test::build_e2e()?, &env);
    command.args([TESTS, "--nocapture", "--test-threads=1"]);
    let mut said = String::new();
    sh::lines(
        command.current_dir(sh::root().join("agent")),
        5 * MINUTE,
        |line| {
            said += line;
            said.push('\n');
        },
    )?;
    Ok(said)
}

/// `GOLDEN TABLE KERNEL ROW CELL`, wherever in a line it begins.
fn measured(line: &str) -> Option<(&str, [&str; 3])> {
    let (_, words) = line.split_once("GOLDEN ")?;
    let words: Vec<&str> = words.split_whitespace().collect();
    match *words {
        [table, kernel, row, cell] => Some((table, [kernel, row, cell])),
        _ => None,
    }
}

/// The table with the columns of the kernels that were measured made new. Comments stay.
fn renewed(table: &str, cells: &[[&str; 3]]) -> String {
    let (comments, lines): (Vec<&str>, Vec<&str>) =
        table.lines().partition(|line| line.starts_with('#'));
    let mut lines = lines.into_iter().map(|line| line.split_whitespace());
    let mut header = lines.next().into_iter().flatten();
    let title = header.next().unwrap_or("what");
    let columns: Vec<&str> = header.collect();
    let mut rows: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for mut line in lines {
        let row = rows.entry(line.next().unwrap_or_default()).or_default();
        let is_old = |(kernel, _): &(&str, &str)| !cells.iter().any(|[new, ..]| new == kernel);
        row.extend(columns.iter().copied().zip(line).filter(is_old));
    }
    for [kernel, row, cell] in cells {
        rows.entry(row).or_default().insert(kernel, cell);
    }
    rows.retain(|_, row| row.values().any(|cell| *cell != "-"));
    let mut kernels: Vec<&str> = columns;
    kernels.extend(cells.iter().map(|[kernel, ..]| kernel));
    kernels.sort_by_key(|kernel| order(kernel));
    kernels.dedup();
    let cell = |row: &BTreeMap<&str, &str>, kernel| (*row.get(kernel).unwrap_or(&"-")).to_owned();
    let mut all = vec![
        [title]
            .iter()
            .chain(&kernels)
            .map(|word| (*word).to_owned())
            .collect(),
    ];
    all.extend(rows.iter().map(|(name, row)| {
        let cells = kernels.iter().map(|kernel| cell(row, kernel));
        [(*name).to_owned()]
            .into_iter()
            .chain(cells)
            .collect::<Vec<String>>()
    }));
    let mut text: String = comments.iter().map(|line| format!("{line}\n")).collect();
    text += &aligned(&all);
    text
}

/// By number; this machine's last.
fn order(kernel: &str) -> (bool, Vec<u32>) {
    let numbers = kernel.trim_start_matches("host-").split('.');
    let numbers = numbers.filter_map(|number| number.parse().ok());
    (kernel.starts_with(HOST), numbers.collect())
}

fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate();
        let text: String = cells
            .map(|(column, cell)| format!("{cell:width$}  ", width = width(column)))
            .collect();
        format!("{}\n", text.trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests_of_the_tables {
    use super::*;

    #[test]
    fn columns_are_renewed() {
        let old = "# why\nname  5.10  7.2\na     1     2\nb     -     3\n";
        assert_eq!(renewed(old, &[["7.2", "a", "2"], ["7.2", "b", "3"]]), old);
        let new = renewed(
            old,
            &[
                ["7.2", "c", "9"],
                ["host-6.18", "a", "longer"],
                ["6.1", "a", "1"],
            ],
        );
        let expected = "# why\nname  5.10  6.1  7.2  host-6.18\na     1     1    -    longer\nc     -     -    9    -\n";
        assert_eq!(new, expected);
        let line = "x GOLDEN verifier 5.10 entry_read 12/40";
        assert_eq!(
            measured(line),
            Some(("verifier", ["5.10", "entry_read", "12/40"]))
        );
        assert_eq!(measured("GOLDEN verifier 5.10"), None);
    }
}
