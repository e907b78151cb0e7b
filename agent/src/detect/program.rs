//! What a program is called in a baseline: the same from version to version, another for another file.
//!
//! The name outlives the run, in a file: it has no secret, whatever is told of processes, and of arguments only what is
//! surely a script's name.

use crate::{record::Process, redact::lasting};

/// Interpreters and virtual machines: the program is what they are given.
struct Interpreter {
    names: &'static [&'static str],
    /// Letters of options: code comes behind, a value does, or the script. What is glued to a letter is its value.
    code: &'static str,
    valued: &'static str,
    script: &'static str,
    glued: &'static str,
    /// The same of words, and those that may stand before the script.
    codes: &'static [&'static str],
    values: &'static [&'static str],
    scripts: &'static [&'static str],
    commands: &'static [&'static str],
}

const NONE: Interpreter = Interpreter {
    names: &[],
    code: "",
    valued: "",
    script: "",
    glued: "",
    codes: &[],
    values: &[],
    scripts: &[],
    commands: &[],
};

const INTERPRETERS: [Interpreter; 9] = [
    Interpreter {
        names: &["python", "pypy"],
        code: "c",
        valued: "WXQ",
        script: "m",
        values: &["--check-hash-based-pycs"],
        ..NONE
    },
    // With `-s` code is what comes as input, and arguments are its own.
    Interpreter {
        names: &["bash", "sh", "dash", "zsh", "ksh", "ash", "fish"],
        code: "cs",
        valued: "oO",
        codes: &["--command", "--init-command"],
        values: &["--rcfile", "--init-file"],
        ..NONE
    },
    Interpreter {
        names: &["node", "nodejs"],
        code: "ep",
        valued: "rC",
        codes: &["--eval", "--print"],
        values: &[
            "--require",
            "--import",
            "--loader",
            "--experimental-loader",
            "--conditions",
            "--env-file",
            "--title",
            "--icu-data-dir",
            "--openssl-config",
        ],
        ..NONE
    },
    Interpreter {
        names: &["ruby"],
        code: "e",
        valued: "rIEC",
        glued: "xKWFTi",
        values: &["--encoding", "--external-encoding", "--internal-encoding"],
        ..NONE
    },
    Interpreter {
        names: &["perl"],
        code: "eE",
        valued: "I",
        glued: "MmiFxDdV",
        ..NONE
    },
    Interpreter {
        names: &["php"],
        code: "rBRE",
        valued: "cdtSTz",
        script: "fF",
        codes: &[
            "--run",
            "--process-begin",
            "--process-code",
            "--process-end",
        ],
        values: &["--define", "--php-ini", "--docroot", "--server"],
        scripts: &["--file", "--process-file"],
        ..NONE
    },
    Interpreter {
        names: &["java"],
        values: &[
            "-cp",
            "-classpath",
            "--class-path",
            "-p",
            "--module-path",
            "--upgrade-module-path",
            "--add-modules",
            "--add-exports",
            "--add-opens",
            "--add-reads",
            "--patch-module",
            "--limit-modules",
            "--enable-native-access",
            "--source",
        ],
        scripts: &["-jar", "-m", "--module"],
        ..NONE
    },
    Interpreter {
        names: &["deno", "bun"],
        code: "ep",
        valued: "cLr",
        codes: &["eval", "repl", "exec", "--eval", "--print"],
        values: &[
            "--config",
            "--import-map",
            "--lock",
            "--cert",
            "--location",
            "--seed",
            "--log-level",
            "--env-file",
            "--preload",
            "--require",
            "--import",
            "--cwd",
            "--port",
        ],
        commands: &["run", "serve", "test", "bench", "x"],
        ..NONE
    },
    Interpreter {
        names: &["dotnet"],
        values: &[
            "--fx-version",
            "--roll-forward",
            "--additionalprobingpath",
            "--additional-deps",
            "--depsfile",
            "--runtimeconfig",
        ],
        commands: &["exec"],
        ..NONE
    },
];

/// Longest path that is kept as it is.
const LONGEST: usize = 64;

/// `None` if nothing is known of it but its id.
pub fn name(process: &Process) -> Option<String> {
    let path = process.executable.as_deref().or(process.comm.as_deref())?;
    let program = unversioned(&lasting(path));
    let arguments = process.arguments.iter().skip(1);
    let arguments = Vec::from_iter(arguments.map(|argument| argument.as_str()));
    let script = match file(&program) {
        "env" => {
            let words = of_env(&arguments);
            let (command, arguments) = words.split_first().unzip();
            command.and_then(|command| script(&unversioned(command), arguments?))
        }
        _ => script(&program, &arguments),
    };
    Some(match script {
        Some(script) => format!(
            "{} {}",
            short(&program),
            short(&unversioned(&lasting(script)))
        ),
        None => short(&program),
    })
}

/// Of a path without versions.
fn file(program: &str) -> &str {
    let file = program.rsplit('/').next().unwrap_or(program);
    file.trim_end_matches(['*', '-'])
}

/// `env -S "python3 -u" A=b s.py`: the command that is run, and its arguments.
fn of_env<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let mut words = Vec::new();
    let mut is_split = false;
    for argument in arguments {
        let split = argument
            .strip_prefix("-S")
            .or_else(|| argument.strip_prefix("--split-string="));
        match split {
            _ if is_split => words.extend(argument.split_whitespace()),
            Some(text) => words.extend(text.split_whitespace()),
            None => words.push(argument),
        }
        is_split = !is_split && *argument == "-S";
    }
    let mut rest = &words[..];
    while let [word, more @ ..] = rest {
        rest = match *word {
            "-u" | "--unset" | "-C" | "--chdir" | "-a" | "--argv0" => more.get(1..).unwrap_or(&[]),
            word if word.starts_with('-') || word.contains('=') => more,
            _ => break,
        };
    }
    rest.to_vec()
}

/// What the interpreter runs: a file, `-m module`, `-jar file`. `None` where that is code, or not sure.
fn script<'a>(program: &str, arguments: &[&'a str]) -> Option<&'a str> {
    let file = file(program);
    let interpreter = INTERPRETERS.iter().find(|it| it.names.contains(&file))?;
    let mut arguments = arguments.iter().copied();
    // What follows an option that is not known may be its value.
    let mut is_sure = true;
    while let Some(argument) = arguments.next() {
        let (word, value) = match argument.split_once('=') {
            Some((word, value)) => (word, Some(value)),
            None => (argument, None),
        };
        if argument == "-" || interpreter.codes.contains(&word) {
            return None;
        }
        if argument == "--" {
            return arguments.next();
        }
        if interpreter.scripts.contains(&word) {
            return value.or_else(|| arguments.next());
        }
        if interpreter.values.contains(&word) {
            if value.is_none() {
                arguments.next();
            }
            is_sure = true;
        } else if argument.starts_with("--") {
            is_sure = value.is_some();
        } else if let Some(letters) = argument.strip_prefix(['-', '+']) {
            is_sure = true;
            match interpreter.option(letters) {
                Behind::Nothing => {}
                Behind::Code => return None,
                Behind::Value => drop(arguments.next()),
                Behind::Script("") => return arguments.next(),
                Behind::Script(script) => return Some(script),
            }
        } else if !interpreter.commands.contains(&argument) {
            return Some(argument).filter(|script| is_sure || is_file(script));
        }
    }
    None
}

/// What comes behind an option.
enum Behind<'a> {
    Nothing,
    Code,
    Value,
    /// As far as it stands in the same argument.
    Script(&'a str),
}

impl Interpreter {
    fn option<'a>(&self, letters: &'a str) -> Behind<'a> {
        for (at, letter) in letters.char_indices() {
            let glued = &letters[at + letter.len_utf8()..];
            match letter {
                _ if self.code.contains(letter) => return Behind::Code,
                _ if self.script.contains(letter) => return Behind::Script(glued),
                _ if self.valued.contains(letter) && glued.is_empty() => return Behind::Value,
                _ if self.valued.contains(letter) || self.glued.contains(letter) => break,
                _ => {}
            }
        }
        Behind::Nothing
    }
}

/// Does it look like a path, or have an ending?
fn is_file(text: &str) -> bool {
    let is_ending = |ending: &str| {
        (1..=5).contains(&ending.len()) && ending.bytes().all(|byte| byte.is_ascii_alphabetic())
    };
    ["/", "./", "../"].iter().any(|root| text.starts_with(root))
        || text
            .rsplit_once('.')
            .is_some_and(|(_, ending)| is_ending(ending))
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
    fn options_are_no_scripts() {
        for (program, arguments, script) in [
            ("python3", &["-u", "script.py"][..], "script.py"),
            ("python3", &["-W", "ignore", "-X", "dev", "run"], "run"),
            ("python3", &["-um", "module", "x"], "module"),
            ("python3", &["-c", "password='hunter2hunter2'", "a.py"], ""),
            ("python3", &["-uc", "password='hunter2hunter2'"], ""),
            ("python3", &["-cpassword='hunter2hunter2'"], ""),
            ("python3", &["-", "hunter2hunter2"], ""),
            ("node", &["--flag", "x.js"], "x.js"),
            ("node", &["--flag", "hunter2hunter2", "x.js"], ""),
            ("node", &["--flag=1", "server"], "server"),
            ("node", &["--title", "hunter2hunter2", "x.js"], "x.js"),
            ("node", &["-r", "./a.js", "x.js"], "x.js"),
            ("node", &["-pe", "hunter2hunter2"], ""),
            ("node", &["--eval=hunter2hunter2", "x.js"], ""),
            ("bash", &["-e", "s.sh", "hunter2hunter2"], "s.sh"),
            ("bash", &["-euo", "pipefail", "s.sh"], "s.sh"),
            ("bash", &["-lc", "curl -u a:hunter2hunter2"], ""),
            ("bash", &["-s", "--", "hunter2hunter2"], ""),
            ("sh", &["--", "s.sh"], "s.sh"),
            ("perl", &["-Mstrict", "-I", "lib", "a.pl"], "a.pl"),
            ("perl", &["-lane", "print"], ""),
            (
                "java",
                &["-Dpassword=hunter2hunter2", "-cp", "a:b", "x.Main"],
                "x.Main",
            ),
            ("java", &["-Xmx1g", "-jar", "app.jar", "x"], "app.jar"),
            ("deno", &["run", "--allow-net", "s.ts"], "s.ts"),
            ("deno", &["eval", "hunter2hunter2"], ""),
            ("dotnet", &["exec", "app.dll"], "app.dll"),
            ("env", &["-S", "python3", "s.py"], "s.py"),
            ("env", &["-S", "python3 -u s.py", "x"], "s.py"),
            ("env", &["-S python3 -u", "s.py"], "s.py"),
            (
                "env",
                &["-u", "A", "TOKEN=hunter2hunter2", "node", "x.js"],
                "x.js",
            ),
            ("env", &["-S", "python3 -c", "hunter2hunter2"], ""),
            ("env", &["curl", "hunter2hunter2"], ""),
            ("env", &[], ""),
        ] {
            let path = format!("/usr/bin/{program}");
            let arguments = [&[program], arguments].concat();
            let expected = format!("{} {script}", unversioned(&path));
            assert_eq!(
                named(&path, &arguments),
                expected.trim_end(),
                "{arguments:?}"
            );
        }
    }

    /// Also where processes are shown as they are: and it is the same name, however they are shown.
    #[test]
    fn a_name_has_no_secret() {
        let token = "ghp_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8";
        let expected = "/srv/[redacted:github]/bin/run";
        assert_eq!(named(&format!("/srv/{token}/bin/run"), &[]), expected);
        for hash in ["01234567", "abcdefab", "abcdef12"] {
            let shown = format!("/srv/[redacted:github:{hash}]/bin/run");
            assert_eq!(named(&shown, &[]), expected);
        }
        assert_eq!(
            named("/usr/bin/node", &["node", &format!("/srv/{token}.js")]),
            "/usr/bin/node /srv/[redacted:github].js"
        );
        let process = Process {
            comm: Some(token.into()),
            ..Process::default()
        };
        assert_eq!(name(&process).unwrap(), "[redacted:github]");
    }

    #[test]
    fn nothing_known_is_no_program() {
        assert_eq!(name(&Process::default()), None);
    }
}
