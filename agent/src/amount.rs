//! Amounts, as people say them.

/// Of bytes: `1.2 KiB`.
pub fn size(bytes: u64) -> String {
    let mut amount = bytes as f64;
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = "";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        // What rounds to 1024.0 is 1.0 of the next.
        if amount < 1023.95 {
            break;
        }
        amount /= 1024.0;
        unit = next;
    }
    format!("{amount:.1} {unit}")
}

/// `1 call`, `2 calls`.
pub fn plural(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_say_them() {
        let sizes = [
            0,
            1023,
            1024,
            1536,
            (1 << 20) - 1,
            1 << 20,
            3 << 20,
            5 << 30,
            u64::MAX,
        ]
        .map(size);
        let expected = [
            "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "3.0 MiB", "5.0 GiB",
            "16.0 EiB",
        ];
        assert_eq!(sizes, expected);
    }
}
