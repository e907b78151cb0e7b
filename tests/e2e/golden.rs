//! What was measured on each kernel: the tables of `tests/golden`, a column for each.
//!
//! What a test measures it also prints, for `cargo xtask bless` to take over.

use std::collections::BTreeMap;
use std::fs;

use crate::harness::is_alone;

/// Names and values of one kernel.
pub(crate) type Column = BTreeMap<String, String>;

const TABLES: [(&str, &str); 3] = [
    ("capabilities", include_str!("../golden/capabilities.txt")),
    ("features", include_str!("../golden/features.txt")),
    ("verifier", include_str!("../golden/verifier.txt")),
];

/// `6.12`; outside of the virtual machines, where a kernel may be built in any way, `host-6.12`.
pub(crate) fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let version: Vec<&str> = release.trim().split('.').take(2).collect();
    let version = version.join(".");
    match is_alone() {
        true => version,
        false => format!("host-{version}"),
    }
}

/// What is expected here. Every virtual machine has its column; of other kernels nothing is known.
#[track_caller]
pub(crate) fn expected(table: &str, measured: &Column) -> Option<Column> {
    let kernel = kernel();
    for (row, cell) in measured {
        println!("GOLDEN {table} {kernel} {row} {cell}");
    }
    let (_, text) = TABLES.iter().find(|(name, _)| *name == table).unwrap();
    let found = column(text, &kernel);
    assert!(
        found.is_some() || !is_alone(),
        "tests/golden/{table}.txt has no column {kernel}: cargo xtask bless"
    );
    if found.is_none() {
        println!("tests/golden/{table}.txt says nothing of {kernel}: compared with nothing");
    }
    found
}

/// The first line names the columns; `-` is no value.
fn column(table: &str, kernel: &str) -> Option<Column> {
    let mut lines = table.lines().filter(|line| !line.starts_with('#'));
    let at = lines
        .next()?
        .split_whitespace()
        .position(|name| name == kernel)?;
    let cells = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let row = words.clone().next()?;
        let cell = words.nth(at).filter(|cell| *cell != "-")?;
        Some((row.to_owned(), cell.to_owned()))
    });
    Some(cells.collect())
}

/// Where the two differ, in lines.
pub(crate) fn differences(
    expected: &Column,
    measured: &Column,
    is_close: impl Fn(&str, &str) -> bool,
) -> String {
    let rows = expected
        .keys()
        .chain(measured.keys().filter(|row| !expected.contains_key(*row)));
    let of = |column: &Column, row: &str| column.get(row).map_or("-", String::as_str).to_owned();
    rows.filter_map(|row| {
        let (expected, measured) = (of(expected, row), of(measured, row));
        let is_same = expected == measured || is_close(&expected, &measured);
        (!is_same).then(|| format!("{row}: {expected} expected, {measured} found\n"))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_compared() {
        let table = "# for people\nname 5.10 7.2\na 1 2\nb - 3\n";
        let column = |kernel| column(table, kernel);
        let of = |cells: &[(&str, &str)]| -> Column {
            let owned = |(row, cell): &(&str, &str)| (row.to_string(), cell.to_string());
            cells.iter().map(owned).collect()
        };
        assert_eq!(column("5.10"), Some(of(&[("a", "1")])));
        assert_eq!(column("7.2"), Some(of(&[("a", "2"), ("b", "3")])));
        assert_eq!(column("6.1"), None);
        let expected = of(&[("a", "1"), ("b", "2")]);
        let same = |_: &str, _: &str| false;
        assert_eq!(differences(&expected, &expected, same), "");
        for other in [
            &[("a", "1")][..],
            &[("a", "1"), ("b", "3")],
            &[("a", "1"), ("b", "2"), ("c", "1")],
        ] {
            assert_eq!(
                differences(&expected, &of(other), same).lines().count(),
                1,
                "{other:?}"
            );
        }
        assert_eq!(
            differences(&expected, &of(&[("a", "1"), ("b", "9")]), |_, _| true),
            ""
        );
    }
}
