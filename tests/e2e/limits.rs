//! What the agent leaves out when it would cost more than it may.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    metrics::v1::{metric::Data, number_data_point::Value as Number},
};
use serde_json::Value;

use crate::collectors::{collector, requests};
use crate::harness::{End, Lab, PYTHON, Run, Running, argv, bare, free_port, seconds, wait_for};
use crate::proc::{breakpoints, wait_for_running};
use crate::records::Records;

/// Much less than a flood costs, and more than an idle agent does.
const CPUS: &str = "0.05";

/// The level that `stats` said last.
fn level(running: &Running) -> Option<u64> {
    let text = running.records();
    let stats = text.kind("stats").last()?;
    stats["shedding"]["level"].as_u64()
}

#[track_caller]
fn wait_for_level(running: &Running, what: &str, is_right: impl Fn(u64) -> bool) {
    wait_for(what, seconds(60), || {
        if let Some(end) = running.process.ended() {
            panic!("the agent ended: {end:?}\n{}", running.process.err());
        }
        level(running).filter(|level| is_right(*level)).map(|_| ())
    });
}

/// Up in a flood, down behind it, and each connection is told of whole or not at all.
#[test]
fn a_flood_is_shed_and_counted() {
    let Some(lab) = Lab::new("a_flood_is_shed_and_counted") else {
        return;
    };
    if bare() {
        return;
    }
    let (cert, key) = lab.certificate();
    let directory = lab.path("");
    let config = lab.file("limits.toml", format!("[limits]\ncpu = {CPUS}\n"));
    let options = argv!["--config", config, "--stats-interval", "500ms"];
    let agent = lab.agent().emit("http,gap,stats").options(options);
    let running = agent.start(argv![PYTHON, lab.program("flood.py"), directory, cert, key]);
    wait_for_level(&running, "connections left out", |level| level == 3);
    lab.file("calm", "");
    wait_for_level(&running, "more room after the flood", |level| level < 3);
    lab.file("end", "");
    let run = running.finish(seconds(60));
    run.success();

    let truth = String::from_utf8(lab.read("count")).unwrap();
    let numbers: Vec<u64> = truth
        .split_whitespace()
        .map(|it| it.parse().unwrap())
        .collect();
    let [connections, size] = numbers[..] else {
        panic!("{truth}")
    };
    // One at each end.
    let handles = 2 * connections;
    let records = run.records();
    let stats = records.last_stats().unwrap();
    let (bytes, shedding) = (&stats["ledger"]["bytes"], &stats["shedding"]);
    let left_out = shedding["connections"].as_u64().unwrap();
    assert!(left_out > 0, "{shedding}");
    assert_eq!(bytes["seen"], handles * size);
    assert_eq!(bytes["over_limit"], left_out * size, "{bytes}");
    assert_eq!(bytes["delivered"], (handles - left_out) * size, "{bytes}");
    assert_eq!(bytes["in_flight"], 0);

    let mut told: BTreeMap<&str, u64> = BTreeMap::new();
    let mut cut = 0;
    let body = |record: &Value, half: &str| record["http"][half]["body"].clone();
    for record in records.kind("http") {
        assert_eq!(record["complete"], true, "{record}");
        *told
            .entry(record["connection"]["id"].as_str().unwrap())
            .or_default() += 1;
        for (half, size) in [("request", 1000), ("response", 4000)] {
            let body = body(record, half);
            assert_eq!(body["size"], size, "{record}");
            cut += u64::from(body["cut"] == true);
        }
    }
    assert_eq!(told.len() as u64, handles - left_out);
    assert!(told.values().all(|count| *count == 1));
    assert_eq!(shedding["bodies"], cut, "{shedding}");
    assert!(cut > 0);
    assert_eq!(records.kind("gap").count(), 0);
    let said = run.process.err();
    assert!(
        said.contains("limits: ") && said.contains("left out"),
        "{said}"
    );
}

/// A thousand requests that are all in the middle of a long body, at both ends: 400 MB, of which the agent keeps no
/// more than its limit allows, and says that it does.
#[test]
fn what_streams_hold_stays_below_the_limit() {
    const STREAMS: u64 = 1000;
    const BODY: u64 = 200_000;
    const LIMIT: u64 = 96 << 20;
    let Some(lab) = Lab::with("what_streams_hold_stays_below_the_limit", &["cc"]) else {
        return;
    };
    if bare() {
        return;
    }
    let streams = lab.compiled("streams");
    let config = lab.file("limits.toml", format!("[limits]\nmemory = {LIMIT}\n"));
    let options = argv!["--config", config, "--stats-interval", "500ms"];
    let agent = lab.agent().emit("http,gap,stats").options(options);
    let program = argv![&streams, STREAMS.to_string(), BODY.to_string()];
    let running = agent.start(program);
    wait_for("all requests to be open", seconds(60), || {
        lab.path("streams.here").exists().then_some(())
    });
    let sent = 2 * STREAMS * BODY;
    wait_for("all of it to be read", seconds(60), || {
        let records = running.records();
        let stats = records.kind("stats").last()?;
        let delivered = stats["ledger"]["bytes"]["delivered"].as_u64();
        (delivered? > sent).then_some(())
    });
    let status = fs::read_to_string(format!("/proc/{}/status", running.process.pid())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let most: u64 = most.unwrap().trim_end_matches("kB").trim().parse().unwrap();
    lab.file("streams.go", "");
    let run = running.finish(seconds(60));
    run.success();
    assert!(most << 10 < LIMIT, "{most} KiB");

    let records = run.records();
    assert_eq!(records.kind("gap").count(), 0);
    let mut kept = 0;
    for record in records.kind("http") {
        let body = &record["http"]["request"]["body"];
        assert_eq!(body["size"], BODY);
        kept += body["content"].as_str().map_or(0, str::len) as u64;
    }
    assert_eq!(records.kind("http").count() as u64, 2 * STREAMS);
    assert!((LIMIT / 8..LIMIT / 4 + 1).contains(&kept), "{kept}");
    let stats = records.last_stats().unwrap();
    let bytes = &stats["ledger"]["bytes"];
    assert_eq!(bytes["seen"], bytes["delivered"], "{bytes}");
    assert_eq!(stats["bounds"]["memory"], 2 * STREAMS, "{stats}");
}

/// What `coverage` says last of the private library: its status, and why.
fn covered(running: &Running) -> Option<(String, String)> {
    let text = running.records();
    let of_it = |record: &&Value| {
        let path = record["library"]["path"].as_str();
        path.is_some_and(|path| path.ends_with("/private/libssl.so.3"))
    };
    let record = text.kind("coverage").filter(of_it).last()?;
    let said = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    Some((said("status"), said("reason")))
}

/// Waits until its status is that one. Why it is.
#[track_caller]
fn wait_for_covered(running: &Running, what: &str, status: &str) -> String {
    wait_for(what, seconds(60), || {
        if let Some(end) = running.process.ended() {
            panic!("the agent ended: {end:?}\n{}", running.process.err());
        }
        let (said, reason) = covered(running)?;
        (said == status).then_some(reason)
    })
}

/// How often the agent said that it pauses the private library. It places probes ahead in the machine's own libraries,
/// too, which other tests may call so often that those are paused as well.
fn pauses_said(run: &Run) -> usize {
    let said = run.process.err();
    let of_it = |line: &&str| line.contains("paused by the governor") && line.contains("/private/");
    said.lines().filter(of_it).count()
}

/// While a program calls as often as it can nothing of it is probed; then it is seen again, and everybody is told.
#[test]
fn probes_that_cost_too_much_are_paused() {
    let Some(lab) = Lab::with("probes_that_cost_too_much_are_paused", &["cc"]) else {
        return;
    };
    if bare() {
        return;
    }
    let private = lab.private_libssl("private");
    let library = private.join("libssl.so.3");
    let spin = lab.compiled("spin");
    let config = lab.file("limits.toml", "[limits]\ntraced-cpu = 0.05\n");
    let options = argv!["--config", config, "--stats-interval", "500ms"];
    let agent = lab.agent().emit("data,coverage,gap,stats").options(options);
    let agent = agent.env("LD_LIBRARY_PATH", private);
    let running = agent.start(argv![&spin]);
    let client = wait_for_running(&spin);
    let reason = wait_for_covered(&running, "a pause", "refused");
    assert!(
        reason.starts_with("paused by the governor: its probes cost"),
        "{reason}"
    );
    wait_for("the probes to go", seconds(5), || {
        breakpoints(client, &library).is_empty().then_some(())
    });
    lab.file("stop", "");
    let reason = wait_for_covered(&running, "the end of the pause", "partly");
    assert_ne!(breakpoints(client, &library), []);
    assert!(
        reason.starts_with("its probes were out for a while"),
        "{reason}"
    );
    lab.file("again.go", "");
    let run = running.finish(seconds(60));
    run.success();

    let records = run.records();
    records.check_ledger().unwrap();
    let stats = records.last_stats().unwrap();
    let (calls, governor) = (&stats["ledger"]["calls"], &stats["governor"]);
    assert_eq!(calls["in_flight"], 0, "{calls}");
    // A CPU makes at most so many in a second or two, and none later.
    let entries = calls["entries"].as_u64().unwrap();
    assert!((10_000..10_000_000).contains(&entries), "{calls}");
    assert_eq!(governor["limit"], 0.05, "{governor}");
    assert!(governor["pauses"].as_u64().unwrap() >= 1, "{governor}");
    let paused = governor["paused_seconds"].as_f64().unwrap();
    assert!(paused >= 10.0, "{governor}");
    let mut shown: Vec<_> = records
        .kind("data")
        .map(|data| {
            let text = data["text"].as_str().unwrap();
            let joined = data["connection"]["joined"].as_str().unwrap();
            (text, joined, data["complete"].as_bool().unwrap())
        })
        .collect();
    shown.sort_unstable();
    let each = [
        ("after\n", "middle", false),
        ("answer after\n", "middle", false),
        ("answer before\n", "start", true),
        ("before\n", "start", true),
    ];
    // At each end.
    assert_eq!(shown, each.map(|one| [one; 2]).as_flattened());
    assert_eq!(records.kind("gap").count(), 0);
    assert_eq!(pauses_said(&run), 1, "{}", run.process.err());
}

/// What `stats` says of a pause stands on Prometheus' page, and arrives at a collector, in the same numbers.
#[test]
fn pauses_are_metrics() {
    let Some(lab) = Lab::with("pauses_are_metrics", &["cc"]) else {
        return;
    };
    if bare() {
        return;
    }
    let private = lab.private_libssl("private");
    let spin = lab.compiled("spin");
    let (_collector, port) = collector(&lab, "metrics", &[]);
    let page = free_port();
    let config = format!(
        r#"
        stats-interval = "200ms"
        [limits]
        traced-cpu = 0.05
        [[sink]]
        type = "file"
        path = "{}"
        emit = ["stats"]
        [[sink]]
        type = "otlp"
        endpoint = "http://127.0.0.1:{port}"
        protocol = "http"
        signals = ["metrics"]
        metrics-interval = "200ms"
        [[sink]]
        type = "prometheus"
        listen = "127.0.0.1:{page}"
        "#,
        lab.path("stats").display(),
    );
    let agent = lab.agent().config(&config);
    let agent = agent.env("LD_LIBRARY_PATH", private);
    let running = agent.start(argv![&spin]);
    // In the order of `GOVERNOR`.
    let is_paused = |numbers: &[f64]| match *numbers {
        [_, paused, pauses, time] => paused >= 1.0 && pauses >= 1.0 && time > 0.5,
        _ => false,
    };
    let on_page = wait_for("a pause on the page", seconds(60), || {
        assert!(
            running.process.ended().is_none(),
            "{}",
            running.process.err()
        );
        let read = read_page(page).ok()?;
        let value = |name| {
            let line = read.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<f64>().ok()
        };
        let governor: Option<Vec<f64>> =
            GOVERNOR.map(|(_, name)| value(name)).into_iter().collect();
        governor.filter(|governor| is_paused(governor))
    });
    let sent = wait_for("a pause at the collector", seconds(20), || {
        let last = requests::<ExportMetricsServiceRequest>(&lab, "metrics", "metrics");
        let sent = last
            .iter()
            .map(|one| GOVERNOR.map(|(name, _)| metric(one, name)));
        let mut sent = sent.filter_map(|one| one.into_iter().collect::<Option<Vec<f64>>>());
        sent.rfind(|governor| is_paused(governor))
    });
    lab.file("stop", "");
    lab.file("again.go", "");
    running.finish(seconds(60)).success();

    // Each of them was said in one `stats`, all four together.
    let records = Records::parse(&String::from_utf8(lab.read("stats")).unwrap(), true).unwrap();
    let said: Vec<Vec<f64>> = records
        .kind("stats")
        .map(|stats| {
            let of = |name| stats["governor"][name].as_f64().unwrap();
            ["cost", "paused", "pauses", "paused_seconds"]
                .map(of)
                .to_vec()
        })
        .collect();
    assert!(said.contains(&on_page), "{on_page:?} of {said:?}");
    assert!(said.contains(&sent), "{sent:?} of {said:?}");
}

/// As OpenTelemetry and as Prometheus call them.
const GOVERNOR: [(&str, &str); 4] = [
    ("vortex.governor.cost", "vortex_governor_cost "),
    ("vortex.governor.paused", "vortex_governor_paused "),
    ("vortex.governor.pauses", "vortex_governor_pauses_total "),
    (
        "vortex.governor.paused_time",
        "vortex_governor_paused_time_seconds_total ",
    ),
];

/// What Prometheus would read.
pub(crate) fn read_page(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(seconds(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// The one point that a metric of this name has.
fn metric(request: &ExportMetricsServiceRequest, name: &str) -> Option<f64> {
    let scopes = request
        .resource_metrics
        .iter()
        .flat_map(|one| &one.scope_metrics);
    let metric = scopes
        .flat_map(|one| &one.metrics)
        .find(|one| one.name == name)?;
    let points = match metric.data.as_ref()? {
        Data::Sum(sum) => &sum.data_points,
        Data::Gauge(gauge) => &gauge.data_points,
        other => panic!("{name}: {other:?}"),
    };
    match points[..] {
        [ref point] => match point.value? {
            Number::AsDouble(value) => Some(value),
            Number::AsInt(value) => Some(value as f64),
        },
        _ => panic!("{name}: {points:?}"),
    }
}

/// Whom nobody watches pays for the probes of a file that he shares, and is spared as well.
#[test]
fn probes_cost_bystanders_no_more() {
    let Some(lab) = Lab::with("probes_cost_bystanders_no_more", &["cc"]) else {
        return;
    };
    if bare() {
        return;
    }
    let private = lab.private_libssl("private");
    let library = private.join("libssl.so.3");
    let spin = lab.compiled("spin");
    let config = lab.file("limits.toml", "[limits]\ntraced-cpu = 0.05\n");
    let options = argv!["--config", config, "--stats-interval", "500ms"];
    let agent = lab.agent().emit("data,coverage,gap,stats").options(options);
    // This one does not spin.
    lab.file("stop", "");
    let agent = agent.env("LD_LIBRARY_PATH", &private);
    let running = agent.start(argv![&spin]);
    wait_for("the watched program", seconds(20), || {
        lab.path("again.here").exists().then_some(())
    });
    assert_eq!(covered(&running).unwrap().0, "probed");

    let other = lab.path("other");
    fs::create_dir(&other).unwrap();
    let mut bystander = lab.command(argv![&spin]);
    bystander
        .env("E2E_DIR", &other)
        .env("LD_LIBRARY_PATH", &private);
    let bystander = lab.spawn(bystander, "bystander");
    wait_for_covered(&running, "a pause", "refused");
    wait_for("the probes to go", seconds(5), || {
        breakpoints(bystander.pid(), &library)
            .is_empty()
            .then_some(())
    });
    for file in ["other/stop", "other/again.go", "again.go"] {
        lab.file(file, "");
    }
    assert_eq!(bystander.wait(seconds(20)), End::Code(0));
    let run = running.finish(seconds(60));
    run.success();

    let records = run.records();
    records.check_ledger().unwrap();
    let stats = records.last_stats().unwrap();
    let calls = &stats["ledger"]["calls"];
    assert!(calls["filtered"].as_u64().unwrap() > 10_000, "{calls}");
    assert_eq!(pauses_said(&run), 1, "{}", run.process.err());
    let texts = records.kind("data").map(|data| data["text"].as_str());
    let mut texts: Vec<_> = texts.map(Option::unwrap).collect();
    texts.sort_unstable();
    let before = ["answer before\n", "before\n", "unseen\n", "unseen too\n"];
    assert_eq!(texts, before.map(|one| [one; 2]).as_flattened());
}
