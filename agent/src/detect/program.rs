//! What a program is called in a baseline: the same from version to version, another for another file.

use crate::record::Process;

/// Interpreters and virtual machines: the program is what they are given.
const INTERPRETERS: [&str; 10] = [
    "python", "node", "nodejs", "ruby", "perl", "php", "java", "deno", "bun", "dotnet",
];

/// Longest path that is kept as it is.
const LONGEST: usize = 64;

/// `None` if nothing is known of it but its id.
pub fn name(process: &Process) -> Option<String> {
    let path = process.executable.as_deref().or(process.comm.as_deref())?;
    let program = unversioned(path);
    let file = program.rsplit('/').next().unwrap_or(&program);
    let file = file.trim_end_matches(['*', '-']);
    let script = INTERPRETERS
        .contains(&file)
        .then(|| script(process))
        .flatten();
    Some(match script {
        Some(script) => format!("{} {}", short(&program), short(&unversioned(script))),
        None => short(&program),
    })
}

/// What the interpreter runs: a file, `-m module`, `-jar file`.
fn script(process: &Process) -> Option<&str> {
    let arguments = process.arguments.get(1..)?;
    let named = arguments
        .iter()
        .position(|it| matches!(it.as_str(), "-m" | "-jar"));
    let first = arguments.iter().position(|it| !it.starts_with('-'));
    // What stands behind the script is the script's own.
    let at = match (named, first) {
        (Some(named), first) if first.is_none_or(|first| named < first) => named + 1,
        (_, first) => first?,
    };
    let code = arguments
        .iter()
        .position(|it| matches!(it.as_str(), "-c" | "-e"));
    match code {
        Some(code) if code < at => None,
        _ => arguments.get(at).map(|argument| argument.as_str()),
    }
}

/// Without what changes when a program is updated: numbers, and words with many digits in them such as hashes.
fn unversioned(path: &str) -> String {
    let mut name = String::with_capacity(path.len());
    let mut rest = path;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric())
            .unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        push(word, &mut name);
        let mark = behind.chars().next();
        if let Some(mark) = mark {
            // `1.2.3-4` is one number.
            let is_between = name.ends_with('*') && matches!(mark, '.' | '-' | '_' | '+');
            if !is_between || !behind[1..].starts_with(|c: char| c.is_ascii_digit()) {
                name.push(mark);
            }
        }
        rest = &behind[mark.map_or(0, char::len_utf8)..];
    }
    name
}

fn push(word: &str, name: &mut String) {
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    let stem = word.trim_end_matches(|c: char| c.is_ascii_digit());
    let is_stem = stem.bytes().all(|byte| byte.is_ascii_alphabetic());
    match digits {
        0 => name.push_str(word),
        // `python3`, but not `v20` nor `deadbeef12`.
        _ if is_stem && stem.len() > 1 && digits <= 2 => {
            name.push_str(stem);
            star(name);
        }
        _ => star(name),
    }
}

fn star(name: &mut String) {
    if !name.ends_with('*') {
        name.push('*');
    }
}

/// Of what is longer the end, which says more, and a hash of all of it.
pub(super) fn short(name: &str) -> String {
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    let hash = blake3::hash(name.as_bytes()).to_hex();
    let start = name.ceil_char_boundary(name.len() - (LONGEST - 20));
    format!("{}…{}", &hash[..16], &name[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: &str, arguments: &[&str]) -> String {
        let process = Process {
            executable: Some(path.into()),
            arguments: arguments.iter().map(|it| (*it).into()).collect(),
            ..Process::default()
        };
        name(&process).unwrap()
    }

    #[test]
    fn a_new_version_is_the_same_program() {
        for (old, new) in [
            ("/usr/bin/python3.11", "/usr/bin/python3.12"),
            ("/opt/agent-1.4.2/bin/agent", "/opt/agent-1.10/bin/agent"),
            (
                "/home/u/.nvm/versions/node/v20.11.0/bin/node",
                "/home/u/.nvm/versions/node/v22.1.0/bin/node",
            ),
            (
                "/home/u/.local/share/claude/versions/2.0.31",
                "/home/u/.local/share/claude/versions/2.1.0",
            ),
            (
                "/nix/store/3v1h2k4j5l6m7n8p-curl-8.4.0/bin/curl",
                "/nix/store/9x8w7v6u5t4s3r2q-curl-8.5.0/bin/curl",
            ),
            (
                "/srv/releases/20260101T1200/app",
                "/srv/releases/20260202T0930/app",
            ),
        ] {
            assert_eq!(named(old, &[]), named(new, &[]));
        }
    }

    #[test]
    fn another_file_is_another_program() {
        for (one, other) in [
            ("/usr/bin/curl", "/tmp/curl"),
            ("/usr/bin/curl", "/usr/bin/wget"),
            ("/opt/agent-1.4.2/bin/agent", "/opt/agent-1.4.2/bin/helper"),
        ] {
            assert_ne!(named(one, &[]), named(other, &[]));
        }
        let long = |end: &str| named(&format!("/a/{}/{end}", "b".repeat(500)), &[]);
        assert_ne!(long("c"), long("d"));
        assert!(long("c").len() <= LONGEST + 8);
    }

    #[test]
    fn an_interpreter_is_what_it_runs() {
        let python = "/usr/bin/python3.11";
        let run = |arguments: &[&str]| named(python, arguments);
        assert_eq!(
            run(&["python3", "-u", "app.py", "x"]),
            "/usr/bin/python* app.py"
        );
        assert_eq!(
            run(&["python3", "-m", "http.server"]),
            "/usr/bin/python* http.server"
        );
        assert_eq!(
            run(&["python3", "app.py", "-m", "x"]),
            "/usr/bin/python* app.py"
        );
        assert_eq!(
            run(&["python3", "-c", "import os", "x"]),
            "/usr/bin/python*"
        );
        assert_eq!(run(&["python3"]), "/usr/bin/python*");
        assert_eq!(run(&[]), "/usr/bin/python*");
        assert_eq!(named("/usr/bin/curl", &["curl", "x"]), "/usr/bin/curl");
    }

    #[test]
    fn nothing_known_is_no_program() {
        assert_eq!(name(&Process::default()), None);
    }
}
