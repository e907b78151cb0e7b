//! The agent at work: three clients talk TLS to a server on loopback, and what they say is shown.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    setup,
    sh::{self, MINUTE, SECOND},
    test,
};

const SERVER: &str = include_str!("demo/server.py");
const CLIENTS: &str = include_str!("demo/clients.sh");

/// What must be in the agent's output: each client's own request and the answer to it.
const SAID: &[(&str, &[&str])] = &[
    (
        "curl",
        &[
            "GET /from-curl HTTP/1.1",
            "HTTP/1.1 200 OK",
            "the answer to /from-curl",
        ],
    ),
    (
        "Python",
        &[
            "POST /from-python HTTP/1.1",
            "a secret of Python",
            "HTTP/1.1 201 Created",
            "the answer to /from-python",
        ],
    ),
    (
        "Node",
        &[
            "POST /from-node HTTP/1.1",
            "a secret of Node",
            "HTTP/1.1 202 Accepted",
            "the answer to /from-node",
        ],
    ),
];

pub(crate) fn run() -> Result<()> {
    sh::ensure_root_is_reachable()?;
    sh::say("==> setup");
    setup::for_demo()?;
    sh::say("==> release build (the first takes a few minutes)");
    let agent = test::build_agent(&[])?;
    let scene = Scene::new()?;
    let text = scene.play(&agent)?;
    drop(scene);

    sh::say("==> is everything there?");
    let mut missing = Vec::new();
    for (client, lines) in SAID {
        for line in *lines {
            let seen = text.contains(line);
            sh::say(&format!(
                "  {} {client:<7} {line}",
                if seen { "yes" } else { "NO " }
            ));
            if !seen {
                missing.push(*line);
            }
        }
    }
    ensure!(
        missing.is_empty(),
        "the agent did not show: {}",
        missing.join(", ")
    );
    sh::say(
        "The agent read all three in the clear: no certificate, no proxy, no change to a program.",
    );
    Ok(())
}

/// A directory and a server, both gone at the end.
struct Scene {
    dir: PathBuf,
    python: PathBuf,
    server: Child,
    port: u16,
}

impl Scene {
    fn new() -> Result<Self> {
        let dir = sh::target().join(format!("demo-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("could not create {}", dir.display()))?;
        // A version manager's `python3` may be a shell script.
        let system = PathBuf::from("/usr/bin/python3");
        let python = if system.exists() {
            system
        } else {
            "python3".into()
        };
        let result = start_server(&dir, &python);
        let (server, port) = result.inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        Ok(Self {
            dir,
            python,
            server,
            port,
        })
    }

    /// Lets the clients talk under the agent, shows its records and returns them.
    fn play(&self, agent: &Path) -> Result<String> {
        let script = self.dir.join("clients.sh");
        fs::write(&script, CLIENTS)?;
        let records = self.dir.join("records.txt");
        let mut command = sh::command(agent);
        command.args([
            "run",
            "--content",
            "full",
            "--emit",
            "data,coverage,stats",
            "--output",
            "text",
            "-o",
        ]);
        command
            .arg(&records)
            .args(["--", "sh"])
            .arg(&script)
            .arg(self.port.to_string());
        command.arg(self.dir.join("cert.pem")).arg(&self.python);
        if !sh::is_root() {
            // The agent asks sudo for its privileged half.
            command.stdin(Stdio::inherit());
        }
        sh::say(
            "==> vortex-agent run --content full --emit data,coverage,stats --output text -- sh clients.sh",
        );
        let result = sh::run(&mut command, 2 * MINUTE);
        sh::say("==> what the agent saw");
        let text = fs::read_to_string(&records).unwrap_or_default();
        print!("{text}");
        result?;
        Ok(text)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn start_server(dir: &Path, python: &Path) -> Result<(Child, u16)> {
    let [key, cert, program] = ["key.pem", "cert.pem", "server.py"].map(|name| dir.join(name));
    let mut openssl = sh::command("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args([
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
    ]);
    openssl
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .stderr(Stdio::null());
    sh::run(&mut openssl, MINUTE).context("the demo's certificate")?;
    fs::write(&program, SERVER)?;

    let mut command = sh::command(python);
    command
        .arg(&program)
        .arg(&cert)
        .arg(&key)
        .stdout(Stdio::piped());
    let mut server = command
        .spawn()
        .context("could not start the demo's server")?;
    let out = server.stdout.take().context("no stdout")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(out).read_line(&mut line);
        let _ = sender.send(line);
    });
    let port = receiver
        .recv_timeout(20 * SECOND)
        .map_err(Into::into)
        .and_then(|line| {
            line.trim().parse().with_context(|| {
                format!("{} did not name its port but: {line:?}", program.display())
            })
        });
    match port {
        Ok(port) => Ok((server, port)),
        Err(error) => {
            let _ = server.kill();
            let _ = server.wait();
            Err(error)
        }
    }
}
