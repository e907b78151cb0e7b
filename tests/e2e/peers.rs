//! Exchanges by peers that others wrote: what each end wrote down, field by field, is what is told of it.
//!
//! The programs are `peers.py`, `events.py`, `grpcio.py` and `sockets.mjs`; nginx is between them in some tests, and then what it
//! gets as a server and what it asks as a client are told, too.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fmt,
    path::PathBuf,
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

use crate::{
    harness::{
        Agent, End, Lab, PYTHON, Proc, Run, argv, bare, free_port, scaled, seconds, wait_for, which,
    },
    namespaces::unix_nanoseconds,
    protocols::messages_are_told,
    records::{number, string},
};

/// Fields by name, in the order in which the names first come.
type Fields = Vec<(String, Vec<Option<String>>)>;

/// One exchange as an end wrote it down.
#[derive(Debug, Deserialize)]
struct Exchange {
    path: String,
    method: String,
    status: u16,
    request: Side,
    response: Side,
}

#[derive(Debug, Deserialize)]
struct Side {
    #[serde(deserialize_with = "grouped")]
    fields: Fields,
    #[serde(deserialize_with = "grouped")]
    trailers: Fields,
    length: u64,
    crc: u32,
}

fn grouped<'de, D: Deserializer<'de>>(from: D) -> Result<Fields, D::Error> {
    let mut fields = Fields::new();
    for (name, value) in Vec::<(String, String)>::deserialize(from)? {
        let name = name.to_ascii_lowercase();
        match fields.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(Some(value)),
            None => fields.push((name, vec![Some(value)])),
        }
    }
    Ok(fields)
}

/// What a record tells of one. A field that is unknown has no value.
#[derive(Debug, Deserialize)]
struct Told {
    complete: bool,
    connection: Connection,
    network: Network,
    #[serde(default)]
    url: Url,
    http: Http,
}

#[derive(Debug, Deserialize)]
struct Connection {
    joined: String,
    role: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Network {
    #[serde(default)]
    protocol: Protocol,
}

#[derive(Debug, Default, Deserialize)]
struct Protocol {
    version: String,
}

#[derive(Debug, Default, Deserialize)]
struct Url {
    path: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Http {
    #[serde(default)]
    request: Half,
    #[serde(default)]
    response: Half,
}

#[derive(Debug, Default, Deserialize)]
struct Half {
    method: Option<String>,
    status_code: Option<u16>,
    #[serde(default)]
    header: Ordered,
    #[serde(default)]
    trailer: Ordered,
    #[serde(default)]
    unknown_fields: u64,
    #[serde(default)]
    body: Body,
}

#[derive(Default, Deserialize)]
struct Body {
    content: Option<String>,
    base64: Option<String>,
    #[serde(default)]
    cut: bool,
    unreadable: Option<String>,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.bytes().len();
        write!(f, "{length} bytes, cut {}, {:?}", self.cut, self.unreadable)
    }
}

impl Body {
    fn bytes(&self) -> Vec<u8> {
        match (&self.content, &self.base64) {
            (Some(text), None) => text.clone().into_bytes(),
            (None, Some(text)) => base64_simd::STANDARD.decode_to_vec(text).unwrap(),
            (None, None) => Vec::new(),
            (Some(_), Some(_)) => panic!("two bodies"),
        }
    }

    fn is(&self, side: &Side) -> bool {
        let bytes = self.bytes();
        let mut crc = flate2::Crc::new();
        crc.update(&bytes);
        (bytes.len() as u64, crc.sum()) == (side.length, side.crc)
            && !self.cut
            && self.unreadable.is_none()
    }
}

/// An object whose order counts.
#[derive(Debug, Default)]
struct Ordered(Fields);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Ordered, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Ordered;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut members: M) -> Result<Ordered, M::Error> {
                let mut fields = Fields::new();
                while let Some(field) = members.next_entry()? {
                    fields.push(field);
                }
                Ok(Ordered(fields))
            }
        }
        from.deserialize_map(Members)
    }
}

impl Told {
    /// Is it exactly this one?
    #[track_caller]
    fn assert_is(&self, truth: &Exchange) {
        let Http { request, response } = &self.http;
        assert!(self.complete, "{self:?}");
        assert_eq!(self.url.path.as_ref(), Some(&truth.path));
        assert_eq!(request.method.as_ref(), Some(&truth.method), "{self:?}");
        assert_eq!(response.status_code, Some(truth.status), "{self:?}");
        for (told, truth) in [(request, &truth.request), (response, &truth.response)] {
            assert_eq!(told.unknown_fields, 0, "{self:?}");
            assert_eq!(told.header.0, truth.fields, "{self:?}");
            assert_eq!(told.trailer.0, truth.trailers, "{self:?}");
            assert!(told.body.is(truth), "{truth:?}: {self:?}");
        }
    }
}

/// The exchanges that NAME wrote down, by their paths.
fn truth(lab: &Lab, name: &str) -> HashMap<String, Exchange> {
    let log = String::from_utf8(lab.read(&format!("{name}.exchanges"))).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    let exchanges = lines.map(|exchange: Exchange| (exchange.path.clone(), exchange));
    exchanges.collect()
}

fn told(run: &Run) -> Vec<Told> {
    let lines = run
        .text
        .lines()
        .filter(|line| line.contains(r#""kind":"http","#));
    lines
        .map(|line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:.600}"))
        })
        .collect()
}

/// Each of the exchanges once, as it was.
#[track_caller]
fn assert_each<'a>(told: impl Iterator<Item = &'a Told>, truth: &HashMap<String, Exchange>) -> u64 {
    let mut missing: HashMap<&String, &Exchange> = truth.iter().collect();
    for told in told {
        let path = told.url.path.as_ref();
        let expected = path.and_then(|path| missing.remove(path));
        told.assert_is(expected.unwrap_or_else(|| panic!("twice, or never: {told:?}")));
    }
    assert!(
        missing.is_empty(),
        "{} missing, such as {:?}",
        missing.len(),
        missing.keys().next()
    );
    truth.len() as u64
}

/// The agent with all of each body.
fn agent(lab: &Lab) -> Agent<'_> {
    lab.agent()
        .emit("http,sse,grpc,gap,coverage,stats")
        .options(argv!["--body-limit", "4194304"])
}

/// The wheels that `peers.py` needs.
fn wheels(lab: &Lab) -> Option<OsString> {
    Some(lab.fixture("httpx", "httpx")?.parent()?.into())
}

fn peer(lab: &Lab, modules: &OsString, name: &str, words: Vec<OsString>) -> Proc {
    let mut all = argv![PYTHON, lab.program("peers.py")];
    all.extend(words);
    let mut command = lab.command(all);
    command.env("PYTHONPATH", modules);
    lab.spawn(command, name)
}

/// A server of `peers.py` called by what it is, and its port.
fn server(lab: &Lab, modules: &OsString, what: &str) -> (Proc, u16) {
    let (cert, key) = lab.certificate();
    let server = peer(lab, modules, what, argv![what, &lab.dir, what, cert, key]);
    let port = lab.port(what, &server);
    (server, port)
}

/// A hundred streams of one connection at once, each answer in another coding.
#[test]
fn http2_by_httpx() {
    let Some(lab) = Lab::new("http2_by_httpx") else {
        return;
    };
    let Some(modules) = wheels(&lab) else {
        return;
    };
    let (_server, port) = server(&lab, &modules, "serve");
    let count = scaled("exchanges", 2000, 40);
    let ask = argv![
        PYTHON,
        lab.program("peers.py"),
        "ask",
        &lab.dir,
        "ask",
        port.to_string(),
        "0",
        count.to_string(),
        "100",
        "any"
    ];
    let run = agent(&lab)
        .env("PYTHONPATH", &modules)
        .start(ask)
        .finish(seconds(150));
    run.success();
    let (sent, got) = (truth(&lab, "serve"), truth(&lab, "ask"));
    assert_eq!((sent.len() as u64, got.len() as u64), (count, count));
    for (path, sent) in &sent {
        let got = &got[path];
        assert_eq!(
            (sent.status, &sent.response.fields),
            (got.status, &got.response.fields)
        );
        assert_eq!(sent.request.fields, got.request.fields);
        assert_eq!(sent.response.crc, got.response.crc, "{path}");
        assert_eq!(sent.request.crc, got.request.crc, "{path}");
    }
    if bare() {
        return;
    }
    assert_eq!(run.records().kind("gap").count(), 0);
    let told = told(&run);
    println!("EXCHANGES {}", assert_each(told.iter(), &sent));
}

/// Where nginx is, and what its configuration begins with.
fn nginx(lab: &Lab) -> Option<(PathBuf, String)> {
    let nginx = which("nginx").or_else(|| lab.fixture("nginx", "bin/nginx"))?;
    std::fs::create_dir(lab.path("temp")).unwrap();
    let dir = lab.dir.display();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/temp/{kind};\n"))
        .concat();
    let begin = format!(
        "user root; daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log stderr;
         events {{ }}\n"
    );
    Some((
        nginx,
        format!("{begin}http {{ {temp} keepalive_requests 100000;\n"),
    ))
}

/// Files as they are, by the kernel and compressed, and what another server answers, as a whole and as it comes.
const KINDS: [&str; 5] = ["file", "file-sent", "file-gzip", "passed", "streamed"];

/// What nginx gets and says as a server of HTTP/2 is what the client says and gets, and so is what it asks of another
/// server by HTTP/1.1.
#[test]
fn http2_behind_nginx() {
    let Some(lab) = Lab::new("http2_behind_nginx") else {
        return;
    };
    let Some((modules, (nginx, begin))) = wheels(&lab).zip(nginx(&lab)) else {
        return;
    };
    let (_server, behind) = server(&lab, &modules, "behind");
    let count = scaled("exchanges", 1500, 50);
    let words = argv!["files", lab.path("www"), count.to_string()];
    let files = peer(&lab, &modules, "files", words);
    assert_eq!(files.wait(seconds(30)), End::Code(0));
    let port = free_port();
    let (cert, key) = lab.certificate();
    let dir = lab.dir.display();
    let config = format!(
        r#"{begin}
            log_format exchanges '$status $request_method $uri';
            access_log {dir}/nginx.log exchanges;
            upstream behind {{ server 127.0.0.1:{behind}; keepalive 16; keepalive_requests 100000; }}
            server {{
                listen 127.0.0.1:{port} ssl http2;
                ssl_certificate {};
                ssl_certificate_key {};
                client_max_body_size 10m;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                proxy_buffer_size 32k;
                proxy_buffers 8 32k;
                location /file/ {{ alias {dir}/www/; }}
                location /file-sent/ {{ alias {dir}/www/; sendfile on; tcp_nopush on; }}
                location /file-gzip/ {{ alias {dir}/www/; gzip on; gzip_types *; gzip_min_length 1; }}
                location /passed/ {{ proxy_pass https://behind; }}
                location /streamed/ {{
                    proxy_pass https://behind;
                    proxy_buffering off;
                    proxy_request_buffering off;
                }}
            }}
        }}"#,
        cert.display(),
        key.display()
    );
    let config = lab.file("nginx.conf", config);
    let mut words = argv![PYTHON, lab.program("before.py"), port.to_string()];
    words.extend(argv![nginx, "-p", &lab.dir, "-e", "stderr", "-c", config]);
    words.extend(argv![
        "--",
        PYTHON,
        lab.program("peers.py"),
        "ask",
        &lab.dir,
        "ask"
    ]);
    words.extend(argv![port.to_string(), "0", count.to_string(), "100"]);
    words.extend(KINDS.map(OsString::from));
    let run = agent(&lab)
        .env("PYTHONPATH", &modules)
        .start(words)
        .finish(seconds(150));
    run.success();
    let (asked, passed) = (truth(&lab, "ask"), truth(&lab, "behind"));
    assert_eq!(asked.len() as u64, count);
    assert!(passed.len() as u64 >= count / 3);
    for (path, passed) in &passed {
        let asked = &asked[path];
        assert_eq!(asked.status, passed.status);
        assert_eq!(asked.response.crc, passed.response.crc, "{path}");
        assert_eq!(asked.request.crc, passed.request.crc, "{path}");
    }
    let log = String::from_utf8(lab.read("nginx.log")).unwrap();
    let mut logged: Vec<String> = log.lines().map(str::to_owned).collect();
    let line = |exchange: &Exchange| {
        let Exchange {
            status,
            method,
            path,
            ..
        } = exchange;
        format!("{status} {method} {path}")
    };
    let mut expected: Vec<String> = asked.values().map(line).collect();
    logged.sort();
    expected.sort();
    assert_eq!(logged, expected);
    if bare() {
        return;
    }
    assert_eq!(run.records().kind("gap").count(), 0);
    let told = told(&run);
    let of = |version: &'static str, role: &'static str| {
        told.iter().filter(move |told| {
            told.network.protocol.version == version
                && told.connection.role.as_deref() == Some(role)
        })
    };
    let count = assert_each(of("2", "client"), &asked)
        + assert_each(of("2", "server"), &asked)
        + assert_each(of("1.1", "client"), &passed);
    assert_eq!(told.len() as u64, count);
    println!("EXCHANGES {count}");
}

/// Each call three times: as the client has it, as nginx does, and as nginx asks for it.
#[test]
fn grpc_behind_nginx() {
    let Some(lab) = Lab::new("grpc_behind_nginx") else {
        return;
    };
    let Some((module, (nginx, begin))) = lab.fixture("grpcio", "grpc").zip(nginx(&lab)) else {
        return;
    };
    let modules = module.parent().unwrap();
    let (cert, key) = lab.certificate();
    let program = lab.program("grpcio.py");
    let words = argv![
        PYTHON,
        &program,
        "serve",
        &lab.dir,
        &cert,
        &key,
        "127.0.0.1"
    ];
    let mut serve = lab.command(words);
    serve.env("PYTHONPATH", modules);
    let server = lab.spawn(serve, "grpcio");
    let behind = lab.port("grpcio", &server);
    let port = free_port();
    let config = format!(
        "{begin}
            access_log off;
            upstream behind {{ server 127.0.0.1:{behind}; keepalive 4; }}
            server {{
                listen 127.0.0.1:{port} ssl http2;
                ssl_certificate {};
                ssl_certificate_key {};
                location / {{ grpc_pass grpcs://behind; grpc_set_header x-way through; }}
            }}
        }}",
        cert.display(),
        key.display()
    );
    let config = lab.file("nginx.conf", config);
    let requests = scaled("requests", 150, 4);
    let mut words = argv![PYTHON, lab.program("before.py"), port.to_string()];
    words.extend(argv![nginx, "-p", &lab.dir, "-e", "stderr", "-c", config]);
    words.extend(argv![
        "--",
        PYTHON,
        program,
        "ask",
        cert,
        "3",
        requests.to_string()
    ]);
    words.push(format!("https://127.0.0.1:{port}").into());
    let run = agent(&lab)
        .env("PYTHONPATH", modules)
        .start(words)
        .finish(seconds(120));
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    assert_eq!(
        records.kind("gap").count() + records.kind("http").count(),
        0
    );
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for call in records.kind("grpc") {
        assert_eq!(call["complete"], true, "{call}");
        assert_eq!(call["rpc"]["service"], "e2e.Echo");
        assert_eq!(call["rpc"]["grpc"]["status_code"], 0, "{call}");
        assert_eq!(
            call["http"]["response"]["trailer"]["grpc-status"][0], "0",
            "{call}"
        );
        let method = string(call, "/rpc/method").unwrap();
        // Each message begins with its length, and holds the same nonce; an echo, of four or into one.
        let messages = |side: &str, of: &str| {
            let body: Body = serde_json::from_value(call["http"][side]["body"].clone()).unwrap();
            let body = body.bytes();
            let mut rest = &body[..];
            let mut found = Vec::new();
            while let Some((prefix, behind)) = rest.split_first_chunk::<5>() {
                let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
                let (message, behind) = behind.split_at(length as usize);
                found.push(message.to_vec());
                rest = behind;
            }
            let sizes: Vec<usize> = found.iter().map(Vec::len).collect();
            assert_eq!(
                call["grpc"][of]["sizes"],
                serde_json::json!(sizes),
                "{call}"
            );
            found
        };
        let (sent, received) = (
            messages("request", "sent"),
            messages("response", "received"),
        );
        assert_eq!(
            sent.len(),
            if matches!(&*method, "One" | "Stream") {
                1
            } else {
                4
            }
        );
        match &*method {
            "One" | "Chat" => assert_eq!(sent, received),
            "Stream" => assert_eq!([&sent[..], &sent, &sent, &sent].concat(), received),
            "Gather" => assert_eq!([sent.concat()], received[..]),
            _ => panic!("{call}"),
        }
        let nonce = String::from_utf8(sent[0][..15].to_vec()).unwrap();
        let who = string(call, "/process/comm").unwrap();
        let role = string(call, "/connection/role").unwrap();
        let way = &call["http"]["request"]["header"]["x-way"][0];
        assert_eq!(
            way == "through",
            who == "nginx" && role == "client",
            "{call}"
        );
        *counts
            .entry(format!("{who} {role} {method} {nonce}"))
            .or_default() += 1;
    }
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    let of = |who: &str| counts.keys().filter(|key| key.starts_with(who)).count() as u64;
    let each = 3 * 4 * requests;
    assert_eq!(
        [of("python3 client"), of("nginx server"), of("nginx client")],
        [each; 3]
    );
    println!("EXCHANGES {}", counts.len());
}

/// Each event when it came: not before it was sent, and not after the client had it.
#[test]
fn events_by_python() {
    let Some(lab) = Lab::new("events_by_python") else {
        return;
    };
    let (cert, key) = lab.certificate();
    let program = lab.program("events.py");
    let serve = argv![PYTHON, &program, "serve", &lab.dir, cert, key];
    let server = lab.spawn(lab.command(serve), "events");
    let port = lab.port("events", &server).to_string();
    let (streams, events) = (scaled("streams", 30, 6), scaled("events", 80, 10));
    let ask = argv![
        PYTHON,
        program,
        "ask",
        &lab.dir,
        port,
        streams.to_string(),
        events.to_string()
    ];
    let run = agent(&lab).start(ask).finish(seconds(90));
    run.success();
    if bare() {
        return;
    }
    let log = |name: &str| -> BTreeMap<(String, u64), Value> {
        let log = String::from_utf8(lab.read(name)).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
        let key = |said: &Value| {
            (
                string(said, "/path").unwrap(),
                number(said, "/number").unwrap(),
            )
        };
        lines.map(|said: Value| (key(&said), said)).collect()
    };
    let (sent, got) = (log("events.sent"), log("events.got"));
    assert_eq!(sent.len() as u64, streams * events);
    assert!(
        sent.iter()
            .all(|(key, sent)| got[key]["data"] == sent["data"])
    );
    let records = run.records();
    assert_eq!(records.kind("gap").count(), 0);
    let mut next: HashMap<String, (u64, u64)> = HashMap::new();
    for event in records.kind("sse") {
        let path = string(event, "/url/path").unwrap();
        let (number, before) = next.entry(path.clone()).or_default();
        let key = (path, *number);
        let sent = &sent[&key];
        let field = |name: &str| event["sse"][name].as_str().unwrap_or_default().to_owned();
        assert_eq!(event["complete"], true, "{event}");
        assert_eq!(event["sse"]["number"], *number, "{event}");
        assert_eq!(field("event"), sent["event"], "{event}");
        assert_eq!(field("id"), sent["id"], "{event}");
        assert_eq!(field("data"), sent["data"], "{event}");
        let time = unix_nanoseconds(event["time"].as_str().unwrap()) as u64;
        // The clock of the kernel is not read at the moment when the wall clock is.
        let slack = 2_000_000;
        let between = |said: &Value| said["time"].as_u64().unwrap();
        assert!(
            between(sent) <= time + slack && time <= between(&got[&key]) + slack && *before <= time,
            "{sent} {} {event}",
            got[&key]
        );
        (*number, *before) = (*number + 1, time);
    }
    assert!(next.values().all(|(count, _)| *count == events), "{next:?}");
    assert_eq!(next.len() as u64, streams);
    let told = told(&run);
    assert_eq!(told.len() as u64, streams);
    assert!(
        told.iter()
            .all(|told| told.complete && told.http.response.body.unreadable.is_none())
    );
    println!("EXCHANGES {streams}, EVENTS {}", streams * events);
}

impl Told {
    /// The exchange that it is one of, by what was said once: the path, or a number in a field.
    fn of<'a>(&self, truth: &'a HashMap<String, Exchange>) -> Option<&'a Exchange> {
        if let Some(path) = &self.url.path {
            return Some(truth.get(path).unwrap_or_else(|| panic!("never: {self:?}")));
        }
        let value = |half: &Half, name| {
            let mut fields = half.header.0.iter().filter(|(known, _)| known == name);
            fields.next()?.1[0].clone()
        };
        let number = value(&self.http.response, "x-number").or_else(|| {
            let nonce = value(&self.http.request, "x-nonce")?;
            Some(nonce.strip_prefix("nonce-")?.to_owned())
        });
        let number = format!("/{}", number?);
        truth
            .values()
            .find(|exchange| exchange.path.ends_with(&number))
    }

    /// Nothing in it is other than it was, whatever is missing.
    #[track_caller]
    fn assert_agrees(&self, truth: &Exchange) {
        let Http { request, response } = &self.http;
        assert!(
            request
                .method
                .as_ref()
                .is_none_or(|method| *method == truth.method),
            "{self:?}"
        );
        assert!(
            response
                .status_code
                .is_none_or(|status| status == truth.status),
            "{self:?}"
        );
        for (told, truth) in [(request, &truth.request), (response, &truth.response)] {
            for (fields, truth) in [
                (&told.header.0, &truth.fields),
                (&told.trailer.0, &truth.trailers),
            ] {
                for (name, values) in fields {
                    let known = truth.iter().find(|(known, _)| known == name);
                    let (_, known) = known.unwrap_or_else(|| panic!("{name}: {truth:?} {self:?}"));
                    // Those that are unknown have no value, or no name.
                    let mut known = known.iter();
                    for value in values.iter().filter(|value| value.is_some()) {
                        assert!(
                            known.any(|known| known == value),
                            "{name}: {truth:?} {self:?}"
                        );
                    }
                }
            }
        }
        if self.complete {
            for (told, truth) in [(request, &truth.request), (response, &truth.response)] {
                let is_coded =
                    |fields: &Fields| fields.iter().any(|(name, _)| name == "content-encoding");
                // Where the coding is unknown the body is as it was sent.
                let is_hidden = is_coded(&truth.fields) && !is_coded(&told.header.0);
                assert!(is_hidden || told.body.is(truth), "{self:?}");
            }
        }
    }

    /// Is it known what was asked and how it was answered, and how many fields there were?
    fn is_known(&self, truth: &Exchange) -> bool {
        let Http { request, response } = &self.http;
        let count = |fields: &Fields| fields.iter().map(|(_, values)| values.len()).sum::<usize>();
        let are_counted = |told: &Half, truth: &Side, hidden: std::ops::RangeInclusive<usize>| {
            let told =
                count(&told.header.0) + count(&told.trailer.0) + told.unknown_fields as usize;
            hidden.contains(&(told - count(&truth.fields) - count(&truth.trailers)))
        };
        // A method or status that HPACK has no number for is unknown, too, and so may the authority be.
        let method = usize::from(request.method.is_none());
        let status = usize::from(response.status_code.is_none());
        self.complete
            && self.url.path.is_some()
            && are_counted(request, &truth.request, method..=method + 1)
            && are_counted(response, &truth.response, status..=status)
    }

    /// And is it known what all of them say?
    fn is_all(&self, truth: &Exchange) -> bool {
        let Http { request, response } = &self.http;
        let is_there = |told: &Half, truth: &Side| {
            told.header.0 == truth.fields && told.trailer.0 == truth.trailers
        };
        self.is_known(truth)
            && is_there(request, &truth.request)
            && is_there(response, &truth.response)
    }
}

/// Attaches to a client whose first answer goes on until then. Of what it asks from `first` on, behind the attach,
/// all is told; of what it asked before nothing wrong. Returns how many there were from there on, and how many of
/// these are told with every field.
fn joined(
    test: &'static str,
    what: &str,
    ask: &str,
    rest: &[&str],
    first: u64,
) -> Option<(u64, u64)> {
    let lab = Lab::new(test)?;
    let modules = wheels(&lab)?;
    let (_server, port) = server(&lab, &modules, what);
    let count = scaled("exchanges", 600, 90);
    let mut words = argv![
        ask,
        &lab.dir,
        "ask",
        port.to_string(),
        "0",
        count.to_string()
    ];
    words.extend(rest.iter().map(OsString::from));
    let client = peer(&lab, &modules, "client", words);
    wait_for("a long answer", seconds(20), || {
        lab.path("long").exists().then_some(())
    });
    let running = agent(&lab).watch(client.pid());
    lab.file("go", "");
    let run = running.finish(seconds(120));
    run.success();
    assert_eq!(client.wait(seconds(5)), End::Code(0), "{}", client.err());
    let truth = truth(&lab, what);
    assert_eq!(truth.len() as u64, count);
    if bare() {
        return None;
    }
    assert_eq!(run.records().kind("gap").count(), 0);
    let mut behind: HashMap<String, bool> = HashMap::new();
    for told in &told(&run) {
        assert_eq!(told.connection.joined, "middle");
        let Some(truth) = told.of(&truth) else {
            // Nobody can say which one it was.
            assert!(!told.complete, "{told:?}");
            continue;
        };
        told.assert_agrees(truth);
        let (_, number) = truth.path.rsplit_once('/').unwrap();
        if number.parse::<u64>().unwrap() < first {
            assert!(truth.path != "/long/0" || !told.complete, "{told:?}");
            continue;
        }
        assert!(told.is_known(truth), "{truth:?} {told:?}");
        let before = behind.insert(truth.path.clone(), told.is_all(truth));
        assert!(before.is_none(), "twice: {told:?}");
    }
    let all = behind.values().filter(|is_all| **is_all).count() as u64;
    assert_eq!(behind.len() as u64, count - first);
    println!("EXCHANGES {}, {all} with every field", behind.len());
    Some((count - first, all))
}

/// Behind the rest of a long answer, each exchange is told as it was.
#[test]
fn http1_joined_in_an_answer() {
    let test = "http1_joined_in_an_answer";
    if let Some((count, all)) = joined(test, "behind", "ask-1", &["long"], 1) {
        assert_eq!(all, count);
    }
}

/// Fields whose names refer to what was sent before have no name as long as the sender's table has it.
#[test]
fn http2_joined_in_an_answer() {
    joined(
        "http2_joined_in_an_answer",
        "serve",
        "ask",
        &["20", "long"],
        60,
    );
}

/// Streams of one connection that are WebSockets, and others beside them that are not.
#[test]
fn websockets_of_http2_by_node() {
    let Some(lab) = Lab::with("websockets_of_http2_by_node", &["node"]) else {
        return;
    };
    let (cert, key) = lab.certificate();
    let program = lab.program("sockets.mjs");
    let serve = argv!["node", &program, "serve", &lab.dir, cert, key];
    let server = lab.spawn(lab.command(serve), "sockets");
    let port = lab.port("sockets", &server).to_string();
    let (sockets, messages) = (scaled("sockets", 20, 3), scaled("messages", 40, 8));
    let numbers = [sockets, messages].map(|number| OsString::from(number.to_string()));
    let mut ask = argv!["node", program, "ask", &lab.dir, port];
    ask.extend(numbers);
    let run = lab
        .agent()
        .emit("http,websocket,gap,coverage,stats")
        .run(ask);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    let (count, closing) = messages_are_told(&records, &lab.read("sockets.messages"));
    assert_eq!(count as u64, sockets * messages);
    assert_eq!(records.kind("gap").count(), 0);
    for direction in ["sent", "received"] {
        let closed = closing.iter().filter(|one| one["direction"] == direction);
        assert_eq!(closed.count() as u64, sockets);
    }
    for message in &closing {
        assert_eq!(message["websocket"]["content"], "bye");
    }
    let told = told(&run);
    let of = |method: &'static str| {
        told.iter().filter(move |told| {
            told.complete && told.http.request.method.as_deref() == Some(method)
        })
    };
    assert_eq!(of("CONNECT").count() as u64, sockets);
    for told in of("GET") {
        let path = told.url.path.as_ref().unwrap();
        assert_eq!(
            told.http.response.body.bytes(),
            format!("plain {path}").into_bytes()
        );
    }
    assert_eq!(of("GET").count() as u64, sockets * messages);
    assert_eq!(told.len() as u64, sockets * (messages + 1));
    println!("EXCHANGES {}, MESSAGES {}", told.len(), 2 * count);
}
