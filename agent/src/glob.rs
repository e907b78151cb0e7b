//! Patterns of paths, as a shell has them; a star also takes slashes.

/// `*` is any text, `?` any character. Linear in time for each star: only the last one is tried again.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((at, from)) => {
                    *from += 1;
                    (p, t) = (*at + 1, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text) in [
            ("/usr/bin/curl", "/usr/bin/curl"),
            ("*/curl", "/usr/bin/curl"),
            ("/usr/*", "/usr/bin/curl"),
            ("*", ""),
            ("/opt/*/bin/python3.?", "/opt/a/b/bin/python3.9"),
            ("*a*b*c", "xxaxxbxxbc"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("curl", "/usr/bin/curl"),
            ("", "x"),
            ("?", ""),
            ("*a", "ab"),
        ] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }
}
