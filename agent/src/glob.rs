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

/// The same of an executable: one that was replaced or removed while it runs is called so behind its path
/// (`/proc/PID/exe`, fs/d_path.c), and stays what it is.
pub fn fits_executable(pattern: &str, path: &str) -> bool {
    let was_there = path.strip_suffix(" (deleted)");
    glob(pattern, path) || was_there.is_some_and(|path| glob(pattern, path))
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

    #[test]
    fn an_executable_that_was_replaced() {
        for (pattern, path, fits) in [
            ("/usr/bin/curl", "/usr/bin/curl", true),
            ("/usr/bin/curl", "/usr/bin/curl (deleted)", true),
            ("*/curl", "/usr/bin/curl (deleted)", true),
            ("* (deleted)", "/usr/bin/curl (deleted)", true),
            ("/usr/bin/curl", "/usr/bin/curl (deleted) (deleted)", false),
            ("/usr/bin/curl", "/usr/bin/curl2 (deleted)", false),
        ] {
            assert_eq!(fits_executable(pattern, path), fits, "{pattern} {path}");
        }
    }
}
